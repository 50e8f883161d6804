"""An archive whose images transformers' own processor prepares, made by the command."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import ImageGPTConfig, ImageGPTForImageClassification

from archive import contents

CLUSTERS = [[value / 4 - 1, -value / 4 + 1, (value % 3) / 2 - 0.5] for value in range(9)]


@pytest.fixture
def imagegpt(tmp_path: Path) -> Path:
    """A small random ImageGPT: its input is indices of colours."""
    folder = tmp_path / "imagegpt"
    torch.manual_seed(0)
    names = {index: f"kind {index}" for index in range(5)}
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 10}
    config = ImageGPTConfig(**small, initializer_range=0.3, id2label=names)  # type: ignore[arg-type, unused-ignore]
    ImageGPTForImageClassification(config).save_pretrained(folder)
    size = {"height": 8, "width": 8}
    processor = {"image_processor_type": "ImageGPTImageProcessor", "size": size, "clusters": CLUSTERS}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


def test_it_is_packaged_with_its_processor_and_named(
    imagegpt: Path, package: Callable[..., str], tmp_path: Path
) -> None:
    printed = package("image-classifier", "--weights", imagegpt, "--export-path", tmp_path)
    assert "note: transformers' ImageGPTImageProcessor preprocesses images on the CPU" in printed
    mar = tmp_path / "imagegpt.mar"
    contents.verify(mar)
    with zipfile.ZipFile(mar) as archive:
        held = archive.read("preprocessor_config.json").decode("utf-8")
        config = yaml.safe_load(archive.read("model-config.yaml"))
    assert str(tmp_path) not in held
    assert config["handler"]["preprocess"]["processor"] == "ImageGPTImageProcessor"
    provenance = contents.read_provenance(mar)
    assert provenance["parity"]["fp32"]["max_relative_error"] < 1e-5
    assert {engine["name"] for engine in provenance["engines"].values()} == {"torch_eager"}
