"""ONNX networks against transformers' own, by ONNX Runtime on the CPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import (
    ConvNextConfig,
    RegNetConfig,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    ViTConfig,
)

from archive import onnx_export, tensorrt_files
from handlers.engines import EngineSpec, networks, tensorrt
from handlers.engines.folding import TorchResNetOps

DIGITS = Path(__file__).parents[2] / "archive" / "digits"


TINY: dict[str, Callable[[], Any]] = {
    "resnext": lambda: ResNetConfig.from_dict(
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 1], "groups": 4, "width_per_group": 32}
    ),
    "wide resnet": lambda: ResNetConfig.from_dict(
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 1], "groups": 1, "width_per_group": 128}
    ),
    "resnet with gelu": lambda: ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], hidden_act="gelu"
    ),
    "vit": lambda: ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        initializer_range=0.2,
    ),
    "convnext": lambda: ConvNextConfig(depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32], initializer_range=0.2),
    "regnet": lambda: RegNetConfig(
        embedding_size=8, hidden_sizes=[16, 16, 24, 32], depths=[1, 1, 2, 1], groups_width=8
    ),
    "swin": lambda: SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[1, 2],
        num_heads=[2, 4],
        window_size=4,
        initializer_range=0.2,
    ),
}
FOLDED = ("resnext", "wide resnet")


def as_they_lie(images: torch.Tensor) -> Any:
    """(N, 3, S, S) -> (N, S, S, 3), as channels_last images lie in memory."""
    return images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
@pytest.mark.parametrize("name", TINY)
def test_every_classifier_gives_the_same_logits(tmp_path: Path, name: str, dtype: torch.dtype, limit: float) -> None:
    torch.manual_seed(0)
    model = networks.build(TINY[name]()).eval()
    onnx_export.export(model, tmp_path / "model.onnx", 32, dtype)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        reference = model(images).logits.numpy()  # in fp32: the export left the model as it was
    assert np.linalg.norm(reference - reference.mean(axis=0)) > 0.05 * np.linalg.norm(
        reference
    )  # they tell images apart
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (logits,) = session.run(["logits"], {"images": as_they_lie(images[:count].to(dtype))})
        assert logits.dtype == images.to(dtype).numpy().dtype
        assert np.linalg.norm(logits - reference[:count]) <= limit * np.linalg.norm(reference[:count])
    nodes = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not (name in FOLDED and "BatchNormalization" in nodes)


def test_a_network_that_onnx_cannot_express_is_refused_by_name(tmp_path: Path) -> None:
    class Spectral(torch.nn.Module):
        config = ViTConfig()

        def forward(self, images: torch.Tensor) -> Any:
            return type("Output", (), {"logits": torch.special.i0e(images).flatten(1)})

    with pytest.raises(ValueError, match=r"Spectral cannot be exported to ONNX opset 17 .*--engine torch_eager"):
        onnx_export.export(Spectral(), tmp_path / "model.onnx", 8)


# fp16's limit is the packaging gate's; fp32 differs by the order of sums alone.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
@pytest.mark.parametrize("count", [1, 5])
def test_same_logits_at_any_batch_size(tmp_path: Path, dtype: torch.dtype, limit: float, count: int) -> None:
    model = ResNetForImageClassification.from_pretrained(DIGITS).eval()
    onnx_export.export(model, tmp_path / "model.onnx", 32, dtype)
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
    with torch.no_grad():
        reference = model(images).logits.numpy()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": as_they_lie(images.to(dtype))})
    assert np.linalg.norm(logits - reference) <= limit * np.linalg.norm(reference)


def test_batchnorm_is_folded_and_the_types_are_half(tmp_path: Path) -> None:
    onnx_export.export(ResNetForImageClassification.from_pretrained(DIGITS), tmp_path / "model.onnx", 32)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    ends = [*graph.input, *graph.output]
    assert [value.name for value in ends] == ["images", "logits"]
    assert {value.type.tensor_type.elem_type for value in ends} == {onnx.TensorProto.FLOAT16}


def test_without_a_gpu_the_archive_gets_the_network_and_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    model = ResNetForImageClassification.from_pretrained(DIGITS)
    tensorrt_files.write(model, tmp_path, (1, 8), 32, "onnx", "auto")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    with pytest.raises(tensorrt_files.ConvertError, match="--plan first-load"):
        tensorrt_files.write(model, tmp_path, (1, 8), 32, "onnx", "packaging")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "torch2trt" or found(name))
    with pytest.raises(tensorrt_files.ConvertError, match="at packaging only"):
        tensorrt_files.write(model, tmp_path, (8,), 32, "torch2trt", "first-load")


def test_whoever_converts_through_torch2trt_hears_how_to_get_it() -> None:
    """The benchmark calls it too, and imports nothing before."""
    spec = EngineSpec("image-classifier", DIGITS, torch.device("cpu"), "fp16", buckets=(8,))
    with pytest.raises(tensorrt_files.ConvertError, match="git clone"):
        tensorrt_files.through_torch2trt(None, spec)


def test_what_torch2trt_is_asked_for_and_its_warnings_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def to_trt(network: Any, inputs: list[torch.Tensor], **options: Any) -> Any:
        warnings.warn("Use set_memory_pool_limit instead.", DeprecationWarning, stacklevel=1)
        asked.update(options, inputs=[tuple(one.shape) for one in inputs], logits=network(inputs[0]).shape)
        return SimpleNamespace(engine=SimpleNamespace(serialize=lambda: bytearray(b"plan")))

    fake = ModuleType("torch2trt")
    fake.__spec__, fake.torch2trt = ModuleSpec("torch2trt", None), to_trt  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch2trt", fake)
    spec = EngineSpec("image-classifier", DIGITS, torch.device("cpu"), "fp16", image_size=32, buckets=(8,))
    model = ResNetForImageClassification.from_pretrained(DIGITS)
    assert tensorrt_files.through_torch2trt(model, spec) == b"plan"
    shape = (8, 3, 32, 32)
    assert (asked["inputs"], asked["logits"], asked["fp16_mode"]) == ([shape], (8, 10), True)
    assert [asked[f"{name}_shapes"] for name in ("min", "opt", "max")] == [[(1, *shape[1:])], [shape], [shape]]
    assert (asked["input_names"], asked["output_names"]) == (["images"], ["logits"])
    with pytest.raises(tensorrt_files.ConvertError, match="one profile; --plan-buckets 8"):
        tensorrt_files.through_torch2trt(model, dataclasses.replace(spec, buckets=(1, 8)))


@pytest.mark.parametrize(
    ("engine", "precision", "device", "carries"),
    [
        ("tensorrt", "auto", "auto", True),
        ("auto", "auto", "auto", True),
        ("auto", "fp16", "cuda", True),
        ("auto", "bf16", "auto", False),
        ("auto", "fp32", "auto", False),
        ("auto", "fp16", "cpu", False),
        ("cudnn", "fp16", "cuda", False),
    ],
)
def test_onnx_goes_where_tensorrt_may_serve(
    engine: str, precision: str, device: str, carries: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "installed", lambda: True)
    assert tensorrt_files.are_carried(engine, precision, device) is carries


def test_converters_get_weights_that_lie_as_they_read_them() -> None:
    """TensorRT's Weights refuse others, and torch2trt hands them on as they are."""
    model = ResNetForImageClassification.from_pretrained(DIGITS)
    network: Any = onnx_export.module(model, torch.device("cpu"), torch.float32, TorchResNetOps()).network
    convolutions = [network.stem, *(conv for block in network.blocks for conv in (*block.body, block.shortcut))]
    assert all(conv.weight.is_contiguous() for conv in convolutions if conv is not None)
