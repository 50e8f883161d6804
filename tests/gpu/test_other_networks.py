"""ResNeXt, Wide ResNet and ViT on an NVIDIA GPU against fp32 on the CPU: which engine takes them, and how exactly."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ResNetConfig, ViTConfig

from archive import onnx_export, random_weights, sample_images
from handlers.engines import EngineSpec, cudnn, networks, tensorrt, titles
from handlers.images.batching import Batcher
from handlers.images.preparation import prepare
from handlers.images.preprocess import Preprocess
from handlers.selection.candidates import choose
from handlers.selection.choosing import load_chosen

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

PREPROCESS = Preprocess(size=64, resize=72)
BROAD = {"resnext50_32x4d": (32, 4), "resnext50_64x4d": (64, 4), "wide_resnet50_2": (1, 128)}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """(16, 3, 64, 64): photographs, normalised, fp32, on the CPU."""
    crops = [crop for file in sample_images.photographs() for crop in prepare(file, PREPROCESS, 10**7)]
    return Batcher(PREPROCESS, torch.device("cpu"), torch.float32)(crops)


def spec_of(folder: Path, precision: str = "fp16") -> EngineSpec:
    return EngineSpec("image-classifier", folder, torch.device("cuda", 0), precision, image_size=64, batch_size=8)


@pytest.fixture(scope="module", params=BROAD)
def broad(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A full-width network's folder, and the network in fp32 on the CPU."""
    groups, width = BROAD[request.param]
    settings = {"depths": [3, 4, 6, 3], "groups": groups, "width_per_group": width, "num_labels": 10}
    checkpoint = random_weights.image_checkpoint(
        ResNetConfig.from_dict(settings), sample_images.photographs()[:8], PREPROCESS
    )
    folder, network = tmp_path_factory.mktemp(request.param), checkpoint.network()
    network.save_pretrained(folder)
    return folder, network


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 1e-2), ("bf16", 5e-2)])
@pytest.mark.parametrize("count", [1, 2, 5, 16])
@torch.inference_mode()
def test_cudnn_runs_groups_and_widths(
    broad: tuple[Path, Any], images: torch.Tensor, precision: str, limit: float, count: int
) -> None:
    folder, network = broad
    spec = spec_of(folder, precision)
    engine = cudnn.ENGINE.load(spec)
    assert engine.details["network"] == titles.title(folder) != "ResNetForImageClassification"
    batch = images[:count].to("cuda", spec.dtype).contiguous(memory_format=torch.channels_last)
    reference = network(images[:count]).logits
    errors = (engine.run(batch).float().cpu() - reference).norm(dim=1) / reference.norm(dim=1)
    assert errors.max() < limit


@pytest.mark.skipif(not tensorrt.installed(), reason="needs TensorRT")
@torch.inference_mode()
def test_tensorrt_runs_them(broad: tuple[Path, Any], images: torch.Tensor, tmp_path: Path) -> None:
    folder, network = broad
    onnx_export.export(network, tmp_path / tensorrt.ONNX, 64)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    spec = dataclasses.replace(spec_of(tmp_path), buckets=(16,), plan_cache=tmp_path / "plans")
    engine = tensorrt.ENGINE.load(spec)
    for count in (1, 5, 16):
        batch = images[:count].to("cuda", torch.float16)
        reference = network(images[:count]).logits
        for layout in (torch.channels_last, torch.contiguous_format):
            logits = engine.run(batch.contiguous(memory_format=layout)).float().cpu()
            assert ((logits - reference).norm(dim=1) / reference.norm(dim=1)).max() < 1e-2


def test_auto_measures_them(broad: tuple[Path, Any]) -> None:
    assert choose("auto", spec_of(broad[0])) == ["cudnn", "torch_eager"]
    _, engine = load_chosen("auto", spec_of(broad[0]))
    measured: Any = engine.details["measured"]
    assert set(measured["milliseconds"]["8"]) == {"cudnn", "torch_eager"}
    assert measured["dropped"] == {}


def test_a_vit_runs_in_pytorch_and_cudnn_says_why_not(tmp_path: Path, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    tiny = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig.from_dict({**tiny, "image_size": 64, "num_labels": 10, "initializer_range": 0.1})
    network = networks.build(config).eval()
    network.save_pretrained(tmp_path)
    assert "of type vit" in str(cudnn.ENGINE.why_not_here(spec_of(tmp_path)))
    name, engine = load_chosen("auto", spec_of(tmp_path))
    assert name == "torch_eager"
    with torch.inference_mode():
        reference = network(images).logits
    logits = engine.run(images.to("cuda", torch.float16).contiguous(memory_format=torch.channels_last)).float().cpu()
    assert ((logits - reference).norm(dim=1) / reference.norm(dim=1)).max() < 1e-2
