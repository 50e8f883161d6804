"""A padded batch through a FusedEncoder: padding is taken out before, and put back as zeros after.

Shapes: N sequences, S the length that they are padded to, T valid tokens of all sequences together, H hidden size,
D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from itertools import accumulate

import torch
import torch.nn.functional as F

from handlers import kernels
from handlers.encoder.fused import FusedEncoder
from handlers.encoder.ops import EncoderOps, Positions, Segments, TorchEncoderOps, launch_context

HALF_PRECISIONS = (torch.float16, torch.bfloat16)


def run_padded(
    encoder: FusedEncoder, hidden: torch.Tensor, valid: torch.Tensor | None, first_too: bool = False
) -> torch.Tensor:
    """Run an encoder on a padded batch without computing the padding.

    Args:
        encoder: the encoder.
        hidden: (N, S, H), the embeddings, in the weights' dtype. Not changed.
        valid: (N, S) bool, True for tokens and False for padding, or None if there is no padding.
        first_too: True if the output at the first position is wanted even if that position is masked, as poolers
            and classification heads read it.

    Returns:
        (N, S, H), zeros at masked positions. A sequence without a valid token is zeros throughout.
    """
    rows, length, _ = hidden.shape
    flat = hidden.flatten(0, 1)  # (N*S, H)
    if valid is None:
        lengths, indices = [length] * rows, torch.arange(rows * length, device=hidden.device)  # (T,)
    else:
        lengths, indices = valid.sum(dim=1).tolist(), valid.flatten().nonzero().squeeze(1)  # (T,)
    if not len(indices):
        return torch.zeros_like(hidden)
    segments, ops = segments_of(lengths, hidden.device), ops_for(encoder, hidden)
    with launch_context(hidden, ops):
        # Position ids are not needed: the embeddings are computed already.
        segments, _ = ops.prepare_packed(indices, segments, Positions())
        # The indexing makes a copy, which the encoder may overwrite.
        packed: torch.Tensor = encoder(flat[indices], segments, ops)  # (T, H)
    padded = packed.new_zeros(flat.shape).index_copy_(0, indices, packed).view(hidden.shape)
    if first_too and valid is not None:
        masked = (valid.any(dim=1) & ~valid[:, 0]).nonzero().squeeze(1)  # (sequences whose first position is masked,)
        if len(masked):
            padded[masked, 0] = run_masked(encoder, hidden[masked], valid[masked])[:, 0]
    return padded


def segments_of(lengths: Iterable[int], device: torch.device) -> Segments:
    """Return the boundaries of sequences of these lengths, empty ones left out."""
    filled = tuple(length for length in lengths if length)
    offsets = torch.tensor([0, *accumulate(filled)], dtype=torch.int32, device=device)  # (N + 1,)
    return Segments(offsets, filled)


def ops_for(encoder: FusedEncoder, hidden: torch.Tensor) -> EncoderOps:
    """Choose the operations for an input.

    Triton's kernels, if the encoder has no operations set, the input is on an NVIDIA GPU, and input and weights have
    one half-precision type. Otherwise the encoder's own: PyTorch casts weights of another type under autocast, and
    refuses them without.
    """
    half = hidden.dtype in HALF_PRECISIONS and next(encoder.parameters()).dtype == hidden.dtype
    if type(encoder.ops) is TorchEncoderOps and hidden.is_cuda and half:
        return _triton_ops(hidden.device) or encoder.ops
    return encoder.ops


@functools.cache
def _triton_ops(device: torch.device) -> EncoderOps | None:
    if kernels.why_not_on(device):
        return None
    from handlers.encoder.triton_ops import TritonEncoderOps

    return TritonEncoderOps(device)


def run_masked(encoder: FusedEncoder, hidden: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Run an encoder on the padding too, as vanilla encoders do. It is slow, and meant for few sequences.

    Args:
        encoder: the encoder.
        hidden: (N, S, H).
        valid: (N, S) bool.

    Returns:
        (N, S, H). Every position has an output; none attends to masked positions.
    """
    segments = segments_of([hidden.shape[1]] * len(hidden), hidden.device)
    encoded: torch.Tensor = encoder(hidden.flatten(0, 1), segments, _MaskedOps(valid))  # (N*S, H)
    return encoded.view(hidden.shape)


class _MaskedOps(TorchEncoderOps):
    """Attention of padded sequences with a mask. valid: (N, S) bool."""

    def __init__(self, valid: torch.Tensor) -> None:
        self.valid = valid

    def attention(self, qkv: torch.Tensor, segments: Segments, heads: int, scale: float) -> torch.Tensor:
        query, key, value = qkv.view(*self.valid.shape, 3, heads, -1).permute(2, 0, 3, 1, 4)  # each (N, heads, S, D)
        mask = self.valid[:, None, None, :]  # (N, 1, 1, S)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)  # (N, heads, S, D)
        return context.transpose(1, 2).flatten(2).flatten(0, 1)
