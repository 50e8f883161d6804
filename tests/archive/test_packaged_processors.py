"""Archives of images that transformers' own processor prepares, and of image encoders, made by the command."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import Dinov2Config, Dinov2Model, ImageGPTConfig, ImageGPTForImageClassification

from archive import inspection

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
    inspection.verify(mar)
    with zipfile.ZipFile(mar) as archive:
        held = archive.read("preprocessor_config.json").decode("utf-8")
        config = yaml.safe_load(archive.read("model-config.yaml"))
    assert str(tmp_path) not in held
    assert config["handler"]["preprocess"]["processor"] == "ImageGPTImageProcessor"
    provenance = inspection.read_provenance(mar)
    assert provenance["parity"]["fp32"]["max_relative_error"] < 1e-5
    assert {engine["name"] for engine in provenance["engines"].values()} == {"torch_eager"}


def test_an_image_encoder_is_packaged_and_compared_by_cosine(package: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "dinov2"
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    sizes = {"image_size": 32, "patch_size": 8, "initializer_range": 0.2}
    Dinov2Model(Dinov2Config(**small, **sizes)).save_pretrained(folder)  # type: ignore[arg-type, unused-ignore]
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    package("image-encoder", "--weights", folder, "--normalize", "--export-path", tmp_path)
    mar = tmp_path / "dinov2.mar"
    inspection.verify(mar)
    with zipfile.ZipFile(mar) as archive:
        assert "labels.json" not in archive.namelist()
        config = yaml.safe_load(archive.read("model-config.yaml"))
    assert (config["handler"]["task"], config["handler"]["normalize"]) == ("embeddings", True)
    provenance = inspection.read_provenance(mar)
    assert provenance["parity"]["fp32"]["min_cosine"] > 0.99999
    assert all(figures["passed"] for figures in provenance["parity"].values())
    assert {engine["network"] for engine in provenance["engines"].values()} == {"Dinov2Model"}
