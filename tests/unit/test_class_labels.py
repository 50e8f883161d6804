"""Class names as people hand them over: a line each, JSON, TorchServe's index_to_name.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archive import early_checks
from archive.checkpoints.class_labels import names_in
from archive.checkpoints.errors import CheckpointError


@pytest.mark.parametrize(
    "content",
    [
        ["tench", "goldfish"],
        {"0": "tench", "1": "goldfish"},
        {"1": "goldfish", "0": "tench"},
        {"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]},
        {"0": ["tench"], "1": "goldfish"},
        {"object_type_names": ["tench", "goldfish"]},
    ],
)
def test_forms_of_json(tmp_path: Path, content: object) -> None:
    path = tmp_path / "index_to_name.json"
    path.write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    assert early_checks.read_labels(path) == ["tench", "goldfish"]


def test_more_than_ten_classes_come_by_number() -> None:
    content = {str(index): f"kind {index}" for index in reversed(range(12))}
    assert names_in(content, "labels") == [f"kind {index}" for index in range(12)]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("tench", 'labels is a str; wanted: a list of names, or {"0": name, "1": name, ...}'),
        (None, "labels is a NoneType"),
        ({}, "labels is empty"),
        ({"tench": 0}, "labels has the key 'tench' where an index belongs"),
        ({"-1": "a", "0": "b"}, "labels has the key '-1'"),
        ({"00": "a"}, "labels has the key '00'"),
        ({"1": "a", "2": "b"}, "labels has 2 classes up to number 2, 0 is missing; wanted: all from 0"),
        ({"0": "a", "2": "b"}, "labels has 2 classes up to number 2, 1 is missing"),
        ({"0": "a", "1": 7}, "labels: class 1 is a int, wanted its name"),
        ({"0": []}, "labels: class 0 is a list, wanted its name"),
        ({"0": ["n01440764", 3]}, "labels: class 0 is a int"),
        (["a", None], "labels: class 1 is a NoneType"),
        ([["n01440764", "tench"]], "labels: class 0 is a list"),
        ({"object_type_names": "abc"}, "labels has the key 'object_type_names'"),
    ],
)
def test_refuses(content: object, named: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        names_in(content, "labels")
    assert named in str(refusal.value)


@pytest.mark.parametrize(("name", "content"), [("l.json", b"{"), ("l.json", b"\xff\xfe"), ("l.txt", b"\xe9t\xe9\n")])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=rf"{name} cannot be read .*wanted: one name per line, or JSON, in UTF-8"
    ):
        early_checks.read_labels(path)
