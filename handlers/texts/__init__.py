"""Texts -> token ids, checked and sorted into micro-batches."""
