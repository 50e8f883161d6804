"""Readers of checkpoints of all layouts. They check a checkpoint and return it as an archive carries it."""
