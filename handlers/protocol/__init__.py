"""Speaks with TorchServe and its clients: rows become requests, and answers become rows. Knows no model and no torch.

To add a protocol, add a file to adapters/ (see adapter.py).
"""
