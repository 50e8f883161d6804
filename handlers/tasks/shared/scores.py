"""Logits -> scores, and the best of them, as transformers' pipelines compute both.

An output that is not finite (fp16 that overflowed, say) becomes an error of its own input, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from handlers.protocol.errors import NotFinite


def top_k(
    logits: torch.Tensor, counts: Sequence[int], labels: Sequence[str], function: str = "softmax"
) -> list[object]:
    """(N, classes) logits -> for each row its counts[i] likeliest classes with probabilities.

    function: see score_function; under "none" the values are called scores, for they are no probabilities.
    """
    values, places = download_top(scores_of(logits, function), max(counts))
    name = "score" if function == "none" else "probability"
    return [
        [
            {"label": labels[place], "index": place, name: value}
            for value, place in zip(values[row][:count], places[row][:count], strict=True)
        ]
        if finite(values[row])
        else NotFinite()
        for row, count in enumerate(counts)
    ]


def labels_of(config: Mapping[str, Any]) -> list[str]:
    labels = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [labels[str(place)] for place in range(len(labels))]


def score_function(config: Mapping[str, Any], labels: int) -> str:
    """What makes scores of logits: "softmax", "sigmoid" or "none".

    As transformers' classification pipelines decide, by config.json's problem_type and the count of labels.
    """
    problem = config.get("problem_type")
    if problem == "regression":
        return "none"
    if problem == "multi_label_classification" or labels == 1:
        return "sigmoid"
    return "softmax"


def scores_of(logits: torch.Tensor, function: str) -> torch.Tensor:
    logits = float_or_nan(logits)
    if function == "softmax":
        return logits.softmax(dim=1)
    return logits.sigmoid() if function == "sigmoid" else logits


def finite(scores: Sequence[float]) -> bool:
    return all(map(math.isfinite, scores))


def float_or_nan(logits: torch.Tensor) -> torch.Tensor:
    """fp32 logits; a row with infinity, which softmax or sigmoid may turn into a number, becomes all NaN."""
    logits = logits.float()
    return torch.where(logits.isfinite().all(dim=1, keepdim=True), logits, torch.nan)


def download_top(scores: torch.Tensor, count: int) -> tuple[list[list[float]], list[list[int]]]:
    """The `count` highest scores of each row and their places, in one download."""
    values, places = scores.topk(count, dim=1)
    both = torch.stack([values.double(), places.double()]).cpu()  # (2, N, count): places below 2**53 are exact
    return both[0].tolist(), both[1].long().tolist()
