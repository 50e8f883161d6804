"""The task "sequence-classification": labels of a text, or of a pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from handlers.encoder.packing import TokenBatch
from handlers.protocol import zero_shot
from handlers.protocol.errors import NotFinite
from handlers.protocol.inner_options import LOGITS
from handlers.protocol.options import whole_number, yes_or_no
from handlers.tasks.shared.head import Head
from handlers.tasks.shared.scores import Top, begin_top, finite, labels_of, score_function, scores_of
from handlers.tasks.shared.task import Answers, Archive, Input, TextTask
from handlers.transfers import Download, upload

HEAD = Head(
    "AutoModelForSequenceClassification",
    ("ForSequenceClassification",),
    output="logits",
    rows="text",
    has_labels=True,
)
OPTIONS = ("top_k", "raw_scores", zero_shot.LABELS, zero_shot.TEMPLATE, zero_shot.MULTI)


class SequenceClassification(TextTask):
    """Answers with labels and their scores, likeliest first."""

    takes_pairs = True
    reads_offsets = False

    def __init__(self, config: Mapping[str, Any], count: int) -> None:
        self.labels = labels_of(config)
        self.count = min(count or len(self.labels), len(self.labels))
        self.function = score_function(config, len(self.labels))
        own = {"top_k": whole_number(1, len(self.labels)), "raw_scores": yes_or_no}
        self.options = {**own, **zero_shot.options(self.labels)}

    def begin(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> Answers:
        counts = [int(options.get("top_k", self.count)) for _, options in inputs]
        top = begin_top(self._scores(outputs, inputs), max(counts))
        logits = _begin_logits(outputs, inputs)
        return lambda: self._answers(top(), counts, logits())

    def _answers(self, top: Top, counts: Sequence[int], logits: Mapping[int, object]) -> list[object]:
        """Return the answers. logits: those that are answered as they are, by the input's index."""
        values, indices = top
        return [
            logits[i]
            if i in logits
            else [{"label": self.labels[p], "score": v} for v, p in zip(values[i][:n], indices[i][:n], strict=True)]
            if finite(values[i])
            else NotFinite()
            for i, n in enumerate(counts)
        ]

    def _scores(self, outputs: torch.Tensor, inputs: Sequence[Input]) -> torch.Tensor:
        """Return the scores of each input, (N, labels): by the checkpoint's function, or the logits themselves."""
        scores = scores_of(outputs, self.function)
        raw = [bool(options.get("raw_scores")) for _, options in inputs]
        if not any(raw):
            return scores
        is_raw = upload(raw, scores.device).unsqueeze(1)  # (N, 1)
        return torch.where(is_raw, scores_of(outputs, "none"), scores)


def _begin_logits(outputs: torch.Tensor, inputs: Sequence[Input]) -> Callable[[], dict[int, object]]:
    """Return what gives the logits of the inputs whose adapters want them, or NotFinite, by the input's index."""
    wanted = [index for index, (_, options) in enumerate(inputs) if options.get(LOGITS)]
    if not wanted:
        return dict
    download = Download(outputs.float())

    def logits() -> dict[int, object]:
        (rows,) = download.arrays()
        return {index: rows[index] if np.isfinite(rows[index]).all() else NotFinite() for index in wanted}

    return logits


def make(archive: Archive) -> TextTask:
    """Return the task of an archive."""
    return SequenceClassification(archive.config, archive.settings.top_k)
