"""ResNeXt and Wide ResNet as transformers' ResNet with two keys more; what an archive says of its network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig

from handlers import engines
from handlers.engines import EngineSpec, networks, titles

TINY: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "num_labels": 5}


def config_of(**settings: Any) -> ResNetConfig:
    return ResNetConfig.from_dict({**TINY, **settings})


# By torchvision's documentation: the sizes of the published networks, in parameters.
@pytest.mark.parametrize(
    ("depths", "groups", "width_per_group", "parameters"),
    [
        ([3, 4, 6, 3], 1, 64, 25_557_032),
        ([3, 4, 6, 3], 32, 4, 25_028_904),
        ([3, 4, 23, 3], 32, 8, 88_791_336),
        ([3, 4, 23, 3], 64, 4, 83_455_272),
        ([3, 4, 6, 3], 1, 128, 68_883_240),
        ([3, 4, 23, 3], 1, 128, 126_886_696),
    ],
    ids=[
        "resnet50",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "resnext101_64x4d",
        "wide_resnet50_2",
        "wide_resnet101_2",
    ],
)
def test_published_networks_have_their_published_size(
    depths: list[int], groups: int, width_per_group: int, parameters: int
) -> None:
    settings = {"depths": depths, "groups": groups, "width_per_group": width_per_group, "num_labels": 1000}
    with torch.device("meta"):
        network = networks.build(ResNetConfig.from_dict(settings))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_a_plain_resnet_is_transformers_own() -> None:
    assert type(networks.build(config_of())) is ResNetForImageClassification
    assert type(networks.build(config_of(groups=1, width_per_group=64))) is ResNetForImageClassification


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"groups": 0}, "groups 0 and width_per_group 64 make a bottleneck 0 wide"),
        ({"width_per_group": 15}, "make a bottleneck 0 wide"),
        ({"layer_type": "basic", "groups": 2}, "basic blocks came with .*only bottlenecks"),
    ],
)
def test_what_no_bottleneck_can_be(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        networks.build(config_of(**settings))


@torch.inference_mode()
def test_a_saved_resnext_is_served_and_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = networks.build(config_of(groups=4, width_per_group=32)).eval()
    network.save_pretrained(tmp_path)
    spec = EngineSpec("image-classifier", tmp_path, torch.device("cpu"), "fp32")
    engine = engines.load("torch_eager", spec)
    assert engine.details["network"] == "ResNeXtForImageClassification (4 groups, width 32 a group)"
    images = torch.randn(2, 3, 33, 47)
    torch.testing.assert_close(engine.run(images), network(images).logits, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_another_classifier_is_served_and_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    network = networks.build(tiny).eval()
    network.save_pretrained(tmp_path)
    engine = engines.load("torch_eager", EngineSpec("image-classifier", tmp_path, torch.device("cpu"), "bf16"))
    assert engine.details["network"] == "ViTForImageClassification"
    logits = engine.run(torch.randn(2, 3, 32, 32).bfloat16().contiguous(memory_format=torch.channels_last))
    assert (logits.shape, logits.dtype) == ((2, 2), torch.bfloat16)


@pytest.mark.parametrize(
    ("config", "title"),
    [
        ({"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}, "ResNetForImageClassification"),
        ({"model_type": "resnet"}, "resnet"),
        ({"model_type": "resnet", "width_per_group": 128}, "resnet (1 group, width 128 a group)"),
        ({"model_type": "regnet", "architectures": ["RegNet"], "groups": 3}, "RegNet"),
        ({"model_type": "timm_wrapper", "architectures": ["Timm"], "architecture": "vit_tiny"}, "Timm (vit_tiny)"),
    ],
)
def test_titles(tmp_path: Path, config: dict[str, Any], title: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert titles.title(tmp_path) == title


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    content = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "mine.py").write_text("raise AssertionError('it was run')", encoding="utf-8")
    with pytest.raises(ValueError, match="custom code"):
        networks.load(tmp_path, torch.float32)
