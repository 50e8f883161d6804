"""What several tests on a GPU need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.made_archives import model_files, write_mar

DIGITS = Path(__file__).parents[2] / "archive" / "digits"
PREPROCESS = {"size": 32, "resize": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


@pytest.fixture
def digits_mar(tmp_path: Path) -> Path:
    """An archive of the digit classifier, in fp16."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(DIGITS / name, folder / name)
    (folder / "labels.json").write_text(json.dumps([str(digit) for digit in range(10)]), encoding="utf-8")
    config = {"batchSize": 4, "handler": {"precision": "fp16", "preprocess": PREPROCESS}}
    return write_mar(tmp_path / "digits.mar", model_files(folder, "image-classifier", config))
