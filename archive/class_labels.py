"""Class names as checkpoints and people hand them over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from archive.sources import CheckpointError

C = TypeVar("C", bound=Any)


def labels_of(id2label: Mapping[int, object]) -> tuple[str, ...] | None:
    """Class names in index order; None where they are the placeholders LABEL_0, LABEL_1, ..."""
    if sorted(id2label) != list(range(len(id2label))):
        raise CheckpointError(f"id2label in config.json must number its {len(id2label)} classes from 0")
    names = tuple(str(id2label[index]) for index in range(len(id2label)))
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def with_labels(config: C, labels: tuple[str, ...] | None) -> C:
    """The transformers configuration itself, with these class names where there are any."""
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    return config
