"""Embeddings as sentence-transformers makes them, for the parity gate: prompt, pooling, modules behind it.

Shares nothing with what serves (handlers/tasks, handlers/texts/prompts.py) but the weights, on purpose.
"""

from __future__ import annotations

from typing import Any

import torch

from handlers.settings import TextSettings
from handlers.tasks.shared.embedding_head import DENSE, LAYER_NORM, EmbeddingHead
from handlers.tasks.shared.pooling import Pooling


def with_prompt(text: str, settings: TextSettings) -> str:
    """Return the text as the tokenizer gets it from a request that names no prompt."""
    text = settings.prompts.get(settings.default_prompt_name, "") + text
    return text.lower() if settings.lower_case else text


def embedding(
    vectors: torch.Tensor, settings: TextSettings, tokenizer: Any, head: EmbeddingHead | None
) -> torch.Tensor:
    """Return the embedding of one text: (1, K) fp32, not shortened.

    Args:
        vectors: (T, hidden) of its tokens.
        tokenizer: transformers'.
    """
    pooling = settings.pooling
    left_out = 0 if pooling.include_prompt else _prompt_tokens(settings, tokenizer)
    pooled = _pool_one(vectors, pooling, left_out)
    found = pooled if head is None else _through(head, pooled)
    return (found / found.norm() if pooling.normalize else found).unsqueeze(0)


def _prompt_tokens(settings: TextSettings, tokenizer: Any) -> int:
    """Return how many tokens the default prompt has by itself, without a special token at its end."""
    prompt = settings.prompts.get(settings.default_prompt_name, "")
    if not prompt:
        return 0
    ids = tokenizer(prompt, truncation=True, max_length=settings.max_tokens)["input_ids"]
    return len(ids) - (ids[-1] in tokenizer.all_special_ids)


def _pool_one(vectors: torch.Tensor, pooling: Pooling, left_out: int) -> torch.Tensor:
    """Pool one text's (T, hidden) vectors into its (K,) pooled vector."""
    weights = torch.arange(1, len(vectors) + 1).unsqueeze(1)[left_out:]  # (T, 1)
    vectors = vectors[left_out:]
    modes = {
        "cls": vectors[0],
        "lasttoken": vectors[-1],
        "mean": vectors.mean(dim=0),
        "max": vectors.max(dim=0).values,
        "mean_sqrt_len_tokens": vectors.sum(dim=0) / len(vectors) ** 0.5,
        "weightedmean": (vectors * weights).sum(dim=0) / weights.sum(),
    }
    return torch.cat([modes[mode] for mode in pooling.modes])


def _through(head: EmbeddingHead, pooled: torch.Tensor) -> torch.Tensor:
    """Return (size_out,) for (size_in,), by the modules' formulas."""
    weights = head.layers.state_dict()
    for index, step in enumerate(head.steps):
        if step.kind == DENSE:
            sums = weights[f"{index}.linear.weight"] @ pooled
            sums = sums + weights[f"{index}.linear.bias"] if step.bias else sums
            found: torch.Tensor = getattr(torch.nn, step.activation)()(sums)
            projection = weights.get(f"{index}.residual.weight")
            added = pooled if projection is None else projection @ pooled
            pooled = found + added if step.residual else found
        elif step.kind == LAYER_NORM:
            centred = pooled - pooled.mean()
            scaled = centred / (centred.square().mean() + 1e-5).sqrt()  # PyTorch's epsilon, which is not configurable
            pooled = scaled * weights[f"{index}.norm.weight"] + weights[f"{index}.norm.bias"]
        else:
            pooled = pooled / pooled.norm()
    return pooled
