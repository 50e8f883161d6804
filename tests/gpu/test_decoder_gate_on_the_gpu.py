"""Packaging on an NVIDIA GPU compares answers to JPEGs that its engines decode with those of the CPU's decoder."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
import torch

from archive import inspection
from archive.__main__ import main
from handlers.images import gpu_decoder
from handlers.images.preprocess import Preprocess

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

DIGITS = Path(__file__).parents[2] / "archive" / "digits"
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _decoder() -> None:
    """Skips on a GPU that decodes no JPEGs."""
    found, why = gpu_decoder.load("auto", Preprocess(size=32, resize=32), GPU, torch.float16)
    if found is None:
        pytest.skip(why)


def test_answers_to_jpegs_are_compared_and_recorded(tmp_path: Path) -> None:
    samples = len(list((DIGITS / "samples").iterdir()))
    command = ["image-classifier", "--weights", str(DIGITS), "--parity-data", str(DIGITS / "samples")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = main([*command, "--decoder", "gpu", "--export-path", str(tmp_path / "store")])
    assert status == 0, printed.getvalue()
    assert "fp16 JPEGs decoded on the GPU, against the CPU's decoder passed" in printed.getvalue()
    figures = inspection.read_provenance(tmp_path / "store" / "digits.mar")["jpegs"]
    assert {"fp32", "fp16"} <= figures.keys()
    for precision, result in figures.items():
        assert result["passed"] is True, (precision, result)
        assert result["device"].startswith("cuda")
        assert (result["samples"], result["encoded"], result["leftOut"]) == (samples, samples, 0), precision
