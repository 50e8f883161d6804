"""Attention masks in every form that libraries pass them -> which tokens of a padded batch are valid.

N: sequences; S: the length they are padded to. Only masks that leave tokens out are understood: one that tells
queries apart (causal, block-diagonal), or one that weighs scores, is no padding and is refused.
"""

from __future__ import annotations

import torch

# Added to a score before softmax, this leaves nothing of it, in any precision.
NOTHING = -1e4


def from_transformers(mask: object, rows: int, length: int) -> torch.Tensor | None:
    """What transformers hands to an encoder -> (N, S) bool, True for valid tokens, or None for all.

    mask: None; (N, S), bool or 0 and 1; (N or 1, 1, S or 1, S), bool with True for what is attended to, or floats
    that are added to the scores. Raises ValueError for others. Rows of queries that are not valid may differ.
    Source: transformers/masking_utils.py, sdpa_mask, eager_mask and flash_attention_mask.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor):
        raise ValueError(
            f"the attention mask is a {type(mask).__name__}; wanted: a tensor. "
            'model.set_attn_implementation("sdpa") makes it one'
        )
    if mask.shape == (rows, length):
        return _zeros_and_ones(mask)
    known = mask.dim() == 4 and mask.shape[0] in (1, rows) and mask.shape[2] in (1, length)
    if not known or mask.shape[1] != 1 or mask.shape[3] != length:
        raise ValueError(
            f"the attention mask is {tuple(mask.shape)} for {rows} sequences of {length} tokens; wanted: (N, S), "
            "or (N, 1, 1, S) or (N, 1, S, S) with equal rows"
        )
    attended = _attended(mask).squeeze(1)  # (N or 1, S or 1, S)
    valid = attended.any(dim=1)  # (N or 1, S)
    if attended.shape[1] != 1 and ((attended != valid.unsqueeze(1)).any(dim=2) & valid).any():
        raise ValueError(
            "the attention mask's rows differ, as a causal mask's do: each query would see other tokens. "
            "The fused encoder takes padding masks; unswap_encoder(model) takes the vanilla encoder back"
        )
    return valid.expand(rows, length)


def from_padding(mask: torch.Tensor | None, rows: int, length: int) -> torch.Tensor | None:
    """torch.nn.TransformerEncoder's src_key_padding_mask -> (N, S) bool, True for valid tokens, or None for all.

    mask: (N, S), bool with True for padding, or floats that are added to the scores. Raises ValueError for others.
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
        raise ValueError("the (N, S) attention mask has values other than 1 for tokens and 0 for padding")
    return valid


def _attended(mask: torch.Tensor) -> torch.Tensor:
    """Bool, or floats added to the scores, as bool."""
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        raise ValueError(f"the attention mask is of type {mask.dtype}; wanted: bool, or floats added to the scores")
    attended = mask == 0
    if not (attended | (mask <= NOTHING)).all():
        raise ValueError(
            f"the attention mask adds values other than 0 and {NOTHING:g} or less to the scores: a bias, not a mask. "
            "unswap_encoder(model) takes the vanilla encoder, which can add it, back"
        )
    return attended
