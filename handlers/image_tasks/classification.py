"""The task "classification": the likeliest classes with probabilities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from handlers.image_tasks.base import ImageArchive, ImageTask
from handlers.protocol.options import whole_number
from handlers.tasks.shared import scores


class Classification(ImageTask):
    """Logits (N, classes) -> labels with probabilities.

    Args:
        labels: of the classes, in order.
        function: see scores.score_function.
        top_k: classes in an answer unless the request asks for another number.
    """

    def __init__(self, labels: Sequence[str], function: str, top_k: int) -> None:
        self.labels, self.function, self.top_k = labels, function, min(top_k, len(labels))
        self.options = {"top_k": whole_number(1, len(labels))}

    def answer(self, outputs: torch.Tensor, options: Sequence[Mapping[str, Any]]) -> list[object]:
        """See ImageTask."""
        counts = [chosen.get("top_k", self.top_k) for chosen in options]
        return scores.top_k(outputs, counts, self.labels, self.function)


def make(archive: ImageArchive) -> ImageTask:
    """Return the task of an archive."""
    labels: list[str] = json.loads((archive.folder / "labels.json").read_text(encoding="utf-8"))
    config = json.loads((archive.folder / "config.json").read_text(encoding="utf-8"))
    return Classification(labels, scores.score_function(config, len(labels)), archive.settings.top_k)
