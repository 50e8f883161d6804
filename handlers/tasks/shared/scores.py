"""Logits -> scores, and the best of them, as transformers' pipelines compute both.

An output that is not finite, as after an overflow in fp16, becomes an error of its own input, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from handlers.protocol.errors import NotFinite
from handlers.transfers import Download

Top = tuple[list[list[float]], list[list[int]]]  # (N, count): scores, highest first, and their indices


def top_k(
    logits: torch.Tensor, counts: Sequence[int], labels: Sequence[str], function: str = "softmax"
) -> list[object]:
    """Return the likeliest classes of each row, with probabilities; NotFinite for a row that is not finite.

    Args:
        logits: (N, classes), of any dtype, on any device.
        counts: how many classes each row gets, (N,).
        labels: of all classes, in the order of the logits.
        function: see score_function. With "none" the values are called scores, for they are no probabilities.

    Source: transformers' ImageClassificationPipeline.postprocess.
    """
    values, indices = begin_top(scores_of(logits, function), max(counts))()
    name = "score" if function == "none" else "probability"
    return [
        [
            {"label": labels[index], "index": index, name: value}
            for value, index in zip(values[row][:count], indices[row][:count], strict=True)
        ]
        if finite(values[row])
        else NotFinite()
        for row, count in enumerate(counts)
    ]


def labels_of(config: Mapping[str, Any]) -> list[str]:
    """Return the labels that config.json names, in the order of the logits; transformers' defaults if it has none."""
    labels = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [labels[str(index)] for index in range(len(labels))]


def score_function(config: Mapping[str, Any], labels: int) -> str:
    """Return the function from logits to scores: "softmax", "sigmoid" or "none".

    transformers' classification pipelines decide alike, by config.json's problem_type and the count of labels.

    Args:
        config: config.json's content.
        labels: how many labels the network has.
    """
    problem = config.get("problem_type")
    if problem == "regression":
        return "none"
    if problem == "multi_label_classification" or labels == 1:
        return "sigmoid"
    return "softmax"


def scores_of(logits: torch.Tensor, function: str) -> torch.Tensor:
    """Return fp32 scores, (N, classes), by a function that score_function names."""
    logits = float_or_nan(logits)
    if function == "softmax":
        return logits.softmax(dim=1)
    return logits.sigmoid() if function == "sigmoid" else logits


def finite(scores: Sequence[float]) -> bool:
    """Return whether no score is NaN or infinite."""
    return all(map(math.isfinite, scores))


def float_or_nan(logits: torch.Tensor) -> torch.Tensor:
    """Return fp32 logits. A row with an infinity, which softmax or sigmoid may turn into a number, is all NaN."""
    logits = logits.float()
    return torch.where(logits.isfinite().all(dim=1, keepdim=True), logits, torch.nan)


def begin_top(scores: torch.Tensor, count: int) -> Callable[[], Top]:
    """Start the download of the `count` highest scores of each row, and return what waits for it.

    Args:
        scores: (N, classes) fp32, on any device.
        count: at most the classes.
    """
    download = Download(*scores.topk(count, dim=1))

    def top() -> Top:
        values, indices = download.arrays()
        return values.tolist(), indices.tolist()

    return top
