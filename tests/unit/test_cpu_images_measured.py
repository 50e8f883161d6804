"""scripts/research/cpu_images.py on small pictures, with a small network."""

from __future__ import annotations

import json
from pathlib import Path

import cpu_images
import pytest

from archive.checkpoints import image_checkpoints


def test_the_ways_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = image_checkpoints.read(cpu_images.DIGITS).network().eval()
    monkeypatch.setattr(cpu_images, "networks", lambda: {"digits": digits})
    monkeypatch.setattr(cpu_images, "least", lambda work, seconds=0: work() is None or 1.0)
    out = tmp_path / "images.json"
    asked = ["1280x960", "--preprocessing", "bilinear 232", "--commit", "abc", "--out", str(out)]
    assert cpu_images.main(asked) == 0
    content = json.loads(out.read_text())
    assert (content["grain"], content["conditions"]["commit"]) == (8, "abc")
    stack, decode, whole, box, order, *scaled = content["rows"]
    assert stack["way"] == "stack, 64 crops"
    assert (decode["way"], whole["way"]) == ("decode", "whole")
    assert 0 < box["logits"]["digits"] < order["logits"]["digits"] < scaled[0]["logits"]["digits"]
    assert [row["decoded"] for row in scaled] == [["320x240"], ["640x480"], ["1280x960"]]
    assert scaled[2]["largest_difference"] == 0  # libjpeg finds nothing to make smaller
    assert box["largest_difference"] <= 2 < scaled[0]["largest_difference"]
