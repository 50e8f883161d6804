"""Reads class names from the forms in which checkpoints and people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from archive.checkpoints.errors import CheckpointError

_WANTED = 'a list of names, or {"0": name, "1": name, ...}'
C = TypeVar("C", bound=Any)


def names_in(content: object, where: str) -> list[str]:
    """Return the class names in a JSON value, in index order.

    Args:
        content: a list of names, or TorchServe's index_to_name.json: an object from each index to a name, or to
            a list with the name last (`{"0": ["n01440764", "tench"]}`), or with the list of names under
            "object_type_names". TorchServe reads it in ts/utils/util.py, load_label_mapping.
        where: what the value is, for messages.

    Raises:
        CheckpointError: for anything else, with its index or key.
    """
    if isinstance(content, Mapping) and isinstance(content.get("object_type_names"), list):
        content = content["object_type_names"]
    if isinstance(content, list):
        return [_name(value, index, where) for index, value in enumerate(content)]
    if not isinstance(content, Mapping) or not content:
        kind = "empty" if content == {} else f"a {type(content).__name__}"
        raise CheckpointError(f"{where} is {kind}; wanted: {_WANTED}")
    return _numbered(content, where)


def _numbered(content: Mapping[str, object], where: str) -> list[str]:
    odd = [key for key in content if not re.fullmatch(r"0|[1-9]\d{0,8}", str(key), re.ASCII)]
    if odd:
        raise CheckpointError(f"{where} has the key {odd[0]!r} where an index belongs; wanted: {_WANTED}")
    names = {int(key): value for key, value in content.items()}
    absent = next((index for index in range(len(names)) if index not in names), None)
    if absent is not None:
        raise CheckpointError(
            f"{where} has {len(names)} classes up to number {max(names)}, {absent} is missing; wanted: all from 0"
        )
    return [_name(names[index], index, where, listed=True) for index in range(len(names))]


def _name(value: object, index: int, where: str, listed: bool = False) -> str:
    name = value[-1] if listed and isinstance(value, list) and value else value
    if not isinstance(name, str):
        raise CheckpointError(f"{where}: class {index} is a {type(name).__name__}, wanted its name")
    return name


def labels_of(id2label: Mapping[int, object]) -> tuple[str, ...] | None:
    """Return the class names in index order; None if they are the placeholders LABEL_0, LABEL_1, ..."""
    if sorted(id2label) != list(range(len(id2label))):
        raise CheckpointError(f"id2label in config.json must number its {len(id2label)} classes from 0")
    names = tuple(str(id2label[index]) for index in range(len(id2label)))
    return None if list(names) == placeholders(len(names)) else names


def placeholders(count: int) -> list[str]:
    """Return what transformers calls classes without names."""
    return [f"LABEL_{index}" for index in range(count)]


def with_labels(config: C, labels: tuple[str, ...] | None) -> C:
    """Set class names in a configuration of transformers, if there are any, and return it."""
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    return config
