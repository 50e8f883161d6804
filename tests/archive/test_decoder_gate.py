"""Packaging on a machine whose GPU decodes JPEGs compares answers with those of the CPU's decoder.

A fake stands in for the GPU. The digits are PNG files, so they are encoded for this.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from archive import inspection
from archive import package as packaging

Run = Callable[..., tuple[int, str]]
Package = Callable[..., str]
ROOT = Path(__file__).parents[2]
FAKE = """

from handlers.images.batching import Batcher


class _Fake(GpuDecoder):
    def __init__(self, preprocess, device, dtype):
        self.preprocess, self.batcher, self.difference = preprocess, Batcher(preprocess, device, dtype), 0

    details = {"jpeg": "a fake", "largestDifferenceOf255": 0, "others": "Pillow"}

    def __call__(self, jpegs):
        return [self.crop(number, jpeg.data) for number, jpeg in enumerate(jpegs)]

    def crop(self, number, data):
        pixels = crop(formats.decode(data, MAX_PIXELS), self.preprocess)
        PIXELS
        return DeviceCrop(self.batcher([pixels]).permute(0, 2, 3, 1).contiguous(), 0)


why_unavailable = lambda preprocess, device: None
GpuDecoder = _Fake
"""


@pytest.fixture
def decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """decoding(statement) -> this tree, with a decoder whose crops go through the statement: `pixels`, `number`."""

    def make(statement: str) -> None:
        tree = tmp_path / "tree"
        for name in ("handlers", "archive"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        decoder = tree / "handlers" / "images" / "gpu_decoder.py"
        decoder.write_text(decoder.read_text(encoding="utf-8") + FAKE.replace("PIXELS\n", f"{statement}\n"))
        monkeypatch.setattr(packaging, "ROOT", tree)

    return make


def options(digits: Path, tmp_path: Path, samples: Path | None = None) -> tuple[object, ...]:
    data = samples or digits / "samples"
    return ("--weights", digits, "--parity-data", data, "--export-path", tmp_path / "store")


def test_a_good_decoder_is_compared_in_every_precision(
    decoding: Callable[[str], None], package: Package, digits: Path, tmp_path: Path
) -> None:
    decoding("pixels = pixels.clip(1, 254)")
    printed = package("image-classifier", *options(digits, tmp_path))
    count = len(list((digits / "samples").iterdir()))
    for precision in ("fp32", "fp16", "bf16"):
        (line,) = [line for line in printed.splitlines() if f"{precision} JPEGs decoded on the GPU" in line]
        assert "against the CPU's decoder passed: relative error" in line
        assert f"({count} compared, {count} encoded for this, 0 left out)" in line
    provenance = inspection.read_provenance(tmp_path / "store" / "digits.mar")
    figures = provenance["jpegs"]["fp16"]
    assert figures["passed"] is True
    assert (figures["samples"], figures["encoded"], figures["leftOut"]) == (count, count, 0)
    assert 0 < figures["max_relative_error"] < 1e-2
    assert not any("JPEGs" in note for note in provenance["notes"])
    assert "fp16: passed, samples" in inspection.show(tmp_path / "store" / "digits.mar").partition("JPEGs decoded")[2]


def test_samples_that_the_gpu_takes_go_as_they_are_and_others_are_left_out(
    decoding: Callable[[str], None], package: Package, digits: Path, tmp_path: Path
) -> None:
    """A JPEG, a progressive one, which is encoded again, and a strip that no GPU decodes."""
    samples = tmp_path / "samples"
    samples.mkdir()
    picture = Image.open(next((digits / "samples").iterdir())).convert("RGB").resize((40, 44))
    picture.save(samples / "a.jpg", quality=80)
    picture.save(samples / "b.jpg", quality=80, progressive=True)
    picture.resize((900, 20)).save(samples / "c.png")
    decoding("pass")
    printed = package("image-classifier", *options(digits, tmp_path, samples), "--precision", "fp32")
    assert "fp32 JPEGs decoded on the GPU, against the CPU's decoder passed" in printed
    assert "(2 compared, 1 encoded for this, 1 left out)" in printed


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("pixels = 255 - pixels", "relative error"),
        ("raise RuntimeError('no such engine')", "it does not run: RuntimeError: no such engine"),
        ("return None", "it decodes none of"),
    ],
    ids=["other pixels", "raises", "decodes nothing"],
)
def test_a_decoder_that_differs_is_left_out_and_the_archive_says_so(
    decoding: Callable[[str], None], package: Package, digits: Path, tmp_path: Path, statement: str, why: str
) -> None:
    decoding(statement)
    printed = package("image-classifier", *options(digits, tmp_path))
    assert f"fp16 JPEGs decoded on the GPU, against the CPU's decoder FAILED: {why}" in printed
    provenance = inspection.read_provenance(tmp_path / "store" / "digits.mar")
    assert provenance["jpegs"]["fp16"]["passed"] is False
    assert any(
        note.startswith("in fp16 the CPU will decode JPEGs: those decoded on the GPU missed the parity gate: FAILED")
        for note in provenance["notes"]
    )


def test_it_is_refused_if_it_was_asked_for_by_name(
    decoding: Callable[[str], None], run: Run, digits: Path, tmp_path: Path
) -> None:
    decoding("pixels = 255 - pixels")
    status, printed = run("image-classifier", *options(digits, tmp_path), "--decoder", "gpu")
    assert status == 1
    assert "with JPEGs decoded on the GPU misses parity with the CPU's decoder" in printed
    assert list((tmp_path / "store").iterdir()) == []


def test_without_such_a_gpu_a_note_says_what_was_not_compared(
    package: Package, digits: Path, digits_mar: Path, tmp_path: Path
) -> None:
    assert inspection.read_provenance(digits_mar)["jpegs"] == {}
    printed = package("image-classifier", *options(digits, tmp_path), "--decoder", "gpu", "--precision", "fp32")
    assert "decoder gpu is asked for, and no JPEG was decoded on a GPU at the parity gate" in printed
