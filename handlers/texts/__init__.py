"""Texts -> token ids -> micro-batches.

payloads: what a client sent -> texts. tokenization, truncation: texts -> token ids. network_inputs: what the network
can be given. micro_batches: inputs of similar length that run together.
"""
