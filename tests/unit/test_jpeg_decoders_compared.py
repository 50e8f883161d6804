"""scripts/research/jpeg_decoders.py with the libraries that are here: Pillow at least."""

from __future__ import annotations

import json
from pathlib import Path

import jpeg_decoders
import numpy as np
import pytest


def test_pillow_differs_from_itself_by_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "decoders.json"
    asked = ["pillow", "--size", "64x48", "--batch", "2", "--seconds", "0.05", "--commit", "abc", "--out", str(out)]
    assert jpeg_decoders.main(asked) == 0
    content = json.loads(out.read_text())
    assert (content["load"], content["conditions"]["commit"]) == ({"size": [64, 48], "batch": 2}, "abc")
    (row,) = content["rows"]
    assert row["images_per_s"] > 10
    assert (row["mean_difference"], row["largest_difference"]) == (0, 0)
    assert json.loads(capsys.readouterr().out) == row


def test_other_pixels_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def brighter(files: object) -> list[np.ndarray]:
        return [np.minimum(jpeg_decoders.pillow(data), 253) + np.uint8(2) for data in files]  # type: ignore[attr-defined]

    def library() -> jpeg_decoders.Library:
        return jpeg_decoders.Library("brighter", "pillow", brighter, np.asarray, on_gpu=False)

    monkeypatch.setitem(jpeg_decoders.LIBRARIES, "brighter", library)
    files = jpeg_decoders.subsampled()
    row = jpeg_decoders.row("brighter", files, files, 0.01)
    assert row["largest_difference"] == 2
    assert 1.9 < row["mean_difference"] <= 2


def test_what_cannot_decode_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> jpeg_decoders.Library:
        raise ModuleNotFoundError("No module named 'absent'\nand more")

    monkeypatch.setitem(jpeg_decoders.LIBRARIES, "absent", absent)
    row = jpeg_decoders.row("absent", [], [], 0.01)
    assert row == {"library": "absent", "why_not": "ModuleNotFoundError: No module named 'absent'"}
    with pytest.raises(SystemExit):
        jpeg_decoders.main(["nothing-of-the-kind"])
