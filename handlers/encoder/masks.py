"""Attention masks in every form that libraries pass them, turned into the valid tokens of a padded batch.

Only padding masks are supported. A mask that differs between queries (causal, block-diagonal) or that adds a bias to
the scores is refused.

Shapes: N sequences, S the length that they are padded to.
"""

from __future__ import annotations

import torch

from handlers.encoder.errors import UnsupportedError

# A score with this added has weight 0 after softmax, in any precision.
MASKED_SCORE = -1e4


def from_transformers(mask: object, rows: int, length: int) -> torch.Tensor | None:
    """Turn what transformers passes to an encoder into valid tokens.

    Source: transformers/masking_utils.py, sdpa_mask, eager_mask and flash_attention_mask.

    Args:
        mask: None; (N, S), bool or 0 and 1; or (N or 1, 1, S or 1, S), bool with True for what is attended to, or
            floats that are added to the scores. Rows of masked queries may differ.
        rows: N.
        length: S.

    Returns:
        (N, S) bool, True for valid tokens, or None if all are.

    Raises:
        UnsupportedError: the mask is no padding mask, or in a form that is not known.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor):
        raise UnsupportedError(
            f"the attention mask is a {type(mask).__name__}; wanted: a tensor. "
            'model.set_attn_implementation("sdpa") makes it one'
        )
    if mask.shape == (rows, length):
        return _zeros_and_ones(mask)
    known = mask.dim() == 4 and mask.shape[0] in (1, rows) and mask.shape[2] in (1, length)
    if not known or mask.shape[1] != 1 or mask.shape[3] != length:
        raise UnsupportedError(
            f"the attention mask is {tuple(mask.shape)} for {rows} sequences of {length} tokens; wanted: (N, S), "
            "or (N, 1, 1, S) or (N, 1, S, S) with equal rows"
        )
    attended = _attended(mask).squeeze(1)  # (N or 1, S or 1, S)
    valid = attended.any(dim=1)  # (N or 1, S)
    if attended.shape[1] != 1 and ((attended != valid.unsqueeze(1)).any(dim=2) & valid).any():
        raise UnsupportedError(
            "the attention mask's rows differ, as a causal mask's do: each query would see other tokens. "
            "The fused encoder takes padding masks; unswap_encoder(model) puts the vanilla encoder back"
        )
    return valid.expand(rows, length)


def from_padding(mask: torch.Tensor | None, rows: int, length: int) -> torch.Tensor | None:
    """Turn the src_key_padding_mask of torch.nn.TransformerEncoder into valid tokens.

    Args:
        mask: None; or (N, S), bool with True for padding, or floats that are added to the scores.
        rows: N.
        length: S.

    Returns:
        (N, S) bool, True for valid tokens, or None if all are.

    Raises:
        UnsupportedError: the mask is no padding mask.
        ValueError: it has another shape.
    """
    if mask is None:
        return None
    if mask.shape != (rows, length):
        raise ValueError(
            f"src_key_padding_mask is {tuple(mask.shape)} for {rows} sequences of {length} tokens; wanted: (N, S)"
        )
    return ~mask if mask.dtype == torch.bool else _attended(mask)


def _zeros_and_ones(mask: torch.Tensor) -> torch.Tensor:
    if mask.dtype == torch.bool:
        return mask
    valid = mask != 0
    if (valid != mask).any():
        raise UnsupportedError("the (N, S) attention mask has values other than 1 for tokens and 0 for padding")
    return valid


def _attended(mask: torch.Tensor) -> torch.Tensor:
    """Return a mask of bools, or of floats added to the scores, as bools."""
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        raise UnsupportedError(
            f"the attention mask is of type {mask.dtype}; wanted: bool, or floats added to the scores"
        )
    attended = mask == 0
    if not (attended | (mask <= MASKED_SCORE)).all():
        raise UnsupportedError(
            f"the attention mask adds values other than 0 and {MASKED_SCORE:g} or less to the scores: a bias, not a "
            "mask. unswap_encoder(model) puts back the vanilla encoder, which can add it"
        )
    return attended
