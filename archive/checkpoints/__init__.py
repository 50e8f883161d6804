"""Readers of checkpoints of all layouts: what they hold, checked, in the form that an archive carries."""
