"""Folders that timm itself saves: read with timm's own values, or refused, and nothing is fetched.

One process reads them all: timm needs a stub of torchvision if that cannot be imported.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from archive.checkpoints import timm_folders
from archive.checkpoints.errors import CheckpointError
from handlers.engines import networks

CHILD = Path(__file__).with_name("timm_child.py")
NAMES = [f"kind {index}" for index in range(5)]
Report = Mapping[str, Any]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed; scripts/setup test installs it")
    folder = tmp_path_factory.mktemp("timm")
    command = [sys.executable, str(CHILD), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "a connection was tried" not in done.stdout + done.stderr
    assert "connected" not in done.stderr
    content: Report = json.loads(done.stdout.splitlines()[-1])
    return content


@pytest.mark.parametrize(
    ("name", "title", "size"),
    [
        ("resnet18", "ResNetForImageClassification", 224),
        ("resnext50_32x4d", "ResNeXtForImageClassification (32 groups, width 4 a group)", 224),
        ("resnet10t", "TimmWrapperForImageClassification (resnet10t)", 176),
        ("resnetv2_18", "TimmWrapperForImageClassification (resnetv2_18)", 224),
        ("seresnet", "TimmWrapperForImageClassification (seresnet18)", 224),
        ("test_resnet", "TimmWrapperForImageClassification (test_resnet)", 160),
        ("test_vit", "TimmWrapperForImageClassification (test_vit)", 160),
        ("test_convnext", "TimmWrapperForImageClassification (test_convnext)", 160),
        ("test_efficientnet", "TimmWrapperForImageClassification (test_efficientnet)", 160),
        ("mobilenetv3", "TimmWrapperForImageClassification (mobilenetv3_small_050)", 224),
        ("swinv2", "TimmWrapperForImageClassification (swinv2_tiny_window8_256)", 32),
        ("vit", "TimmWrapperForImageClassification (vit_tiny_patch16_224)", 32),
        ("wrapped", "TimmWrapperForImageClassification (test_resnet)", 160),
        ("older", "TimmWrapperForImageClassification (vit_tiny_patch16_224)", 32),
        ("max pooling", "TimmWrapperForImageClassification (test_resnet)", 160),
        ("not pretrained", "TimmWrapperForImageClassification (test_resnet)", 160),
    ],
)
def test_values_are_timms_own(report: Report, name: str, title: str, size: int) -> None:
    found = report[name]
    assert "refused" not in found, found
    assert found["read"] <= 1e-5 * found["scale"]
    assert found["served"] <= 1e-5 * found["scale"]
    assert (found["title"], found["size"], found["layout"]) == (title, size, "timm")
    assert (found["labels"], found["notes"]) == (NAMES, [])


def test_classes_without_names(report: Report) -> None:
    assert report["no labels"]["labels"] is None


def test_stored_buffers_are_a_note(report: Report) -> None:
    found = report["stored tables"]
    assert found["read"] <= 1e-5 * found["scale"]
    assert len(found["notes"]) == 1
    for word in ("weights that TimmWrapper", "relative_coords_table", "relative_position_index"):
        assert word in found["notes"][0]


@pytest.mark.parametrize("name", ["sources", "flash"])
def test_what_would_be_fetched_does_not_reach_the_archive(report: Report, name: str) -> None:
    found = report[name]
    assert found["read"] <= 1e-5 * found["scale"]
    assert not {"attn_implementation", "_attn_implementation"} & found["config"].keys()
    for word in ("example.org", "an/other", "w.pth", "hf-hub", "flash"):
        assert word not in json.dumps(found["config"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf-hub", "architecture 'hf-hub:timm/test_resnet.r160_in1k', wanted a name that timm itself has"),
        ("hf_hub", "architecture 'hf_hub:timm/test_resnet.r160_in1k'"),
        ("local-dir", "architecture 'local-dir:/other'"),
        ("path", "architecture '../test_resnet'"),
        ("no architecture", "architecture None"),
        ("unknown", "'no_such_network' is not supported in your version of timm"),
        ("checkpoint_path", "checkpoint_path='/other.pth'"),
        ("resnet18 with a checkpoint_path", "checkpoint_path='/other.pth'"),
        ("pretrained", "pretrained=True"),
        ("pretrained_cfg", "pretrained_cfg={'hf_hub_id': 'an/other'}"),
        ("features", "features_only=True"),
        ("grey", "in_chans 1, wanted 3"),
        ("two counts", "num_classes 5, and 7 in model_args"),
        ("hub kernel", "attn_implementation 'an/kernel'"),
        ("quantized", "quantization_config (quant_method: bitsandbytes)"),
        ("older max pooling", "global_pool 'max', and timm builds 'avg'"),
        ("older max pooling in a ResNet", "global_pool 'max', and timm builds 'avg'"),
        ("older pooling", "missing: timm_model.norm.bias"),
        ("shared weights, pickled", "coat_tiny shares weights between layers"),
    ],
)
def test_refuses(report: Report, name: str, words: str) -> None:
    assert words in report[name].get("refused", report[name])


def test_every_parameter_of_timms_builders_is_known(report: Report) -> None:
    """So that a new one cannot reach timm through a checkpoint's model_args."""
    assert set(report["parameters"]) <= timm_folders.REFUSED_ARGUMENTS


def test_an_archive_of_timms_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_type": "timm_wrapper", "architecture": "test_vit"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm's \(test_vit\), and timm cannot be imported here .*torchvision"):
        networks.load(tmp_path, torch.float32)


@pytest.mark.parametrize(
    ("config_json", "names"),
    [
        ({"label_names": {"0": "a", "1": "b"}, "num_classes": 2}, ["a", "b"]),
        ({"labels": ["a", "b"], "num_classes": 2, "input_size": [3, 8, 8]}, ["a", "b"]),
        ({"num_classes": 2, "pretrained_cfg": {"label_names": ["a", "b"]}}, ["a", "b"]),
        ({"model_args": {"num_classes": 1000}}, [f"LABEL_{index}" for index in range(1000)]),
        ({}, [f"LABEL_{index}" for index in range(1000)]),
    ],
)
def test_names_of_classes(config_json: dict[str, Any], names: list[str]) -> None:
    served = timm_folders.served_config({"architecture": "test_vit", **config_json})
    assert (served["label_names"], served["num_classes"]) == (names, len(names))


def test_timms_own_names_of_imagenet_21k_are_left_to_it() -> None:
    assert "label_names" not in timm_folders.served_config({"architecture": "test_vit", "num_classes": 21843})


@pytest.mark.parametrize("count", [0, -1, "5", True, 2.0])
def test_refuses_counts_of_classes(count: object) -> None:
    with pytest.raises(CheckpointError, match="wanted a number of 1 or more"):
        timm_folders.served_config({"architecture": "test_vit", "num_classes": count})
