"""The task "token-classification": entities, as runs of tokens with one label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from handlers.encoder.packing import TokenBatch
from handlers.protocol.errors import NotFinite
from handlers.tasks.shared.head import Head
from handlers.tasks.shared.scores import download_top, finite, float_or_nan, labels_of
from handlers.tasks.shared.task import Archive, Input, TextTask
from handlers.texts.tokenization import Encoded

HEAD = Head(
    "AutoModelForTokenClassification",
    ("ForTokenClassification",),
    output="logits",
    rows="token",
    has_labels=True,
)
OPTIONS: tuple[str, ...] = ()


class TokenClassification(TextTask):
    """Answers with entities: runs of tokens with one label, as transformers' "simple" aggregation makes them."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.labels = labels_of(config)

    def answer(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> list[object]:
        values, indices = download_top(float_or_nan(outputs).softmax(dim=1), 1)
        answers: list[object] = []
        for (encoded, _), start in zip(inputs, accumulate(batch.lengths, initial=0), strict=False):
            rows = range(start, start + len(encoded.ids))
            scores, labels = [values[row][0] for row in rows], [self.labels[indices[row][0]] for row in rows]
            good = finite(scores)
            answers.append(_entities(encoded, scores, labels) if good else NotFinite())
        return answers


def _entities(encoded: Encoded, scores: Sequence[float], labels: Sequence[str]) -> list[dict[str, object]]:
    """Group tokens as transformers' TokenClassificationPipeline.group_entities does; "O" is left out."""
    groups: list[list[int]] = []
    for index, special in enumerate(encoded.encoding.special_tokens_mask):
        if special:
            continue
        _, tag = _split_tag(labels[index])
        if groups and labels[index][:2] != "B-" and tag == _split_tag(labels[groups[-1][-1]])[1]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return [_entity(encoded, group, scores, labels) for group in groups if labels[group[0]] != "O"]


def _entity(
    encoded: Encoded, group: Sequence[int], scores: Sequence[float], labels: Sequence[str]
) -> dict[str, object]:
    offsets = encoded.encoding.offsets
    start, end = _without_blanks(encoded.text, offsets[group[0]][0], offsets[group[-1]][1])
    return {
        "label": labels[group[0]].split("-", 1)[-1],
        "score": sum(scores[index] for index in group) / len(group),
        "text": encoded.text[start:end],
        "start": start,
        "end": end,
    }


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the part text[start:end] without the blanks around it; a part of blanks alone is empty, at its end.

    Some tokenizers count the blank before a word to the word.
    """
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return start, max(start, end - (len(part) - len(part.rstrip())))


def _split_tag(label: str) -> tuple[str, str]:
    return (label[0], label[2:]) if label[:2] in ("B-", "I-") else ("I", label)


def make(archive: Archive) -> TextTask:
    """Return the task of an archive."""
    return TokenClassification(archive.config)
