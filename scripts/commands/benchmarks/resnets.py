"""The workload of an image classifier: a ResNet's folder, photographs for it, their fp32 logits, its layers."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archive import presets, sample_images
from archive.parity import Array
from benchmarks import engine_loading, layers
from benchmarks.layers import Layer
from benchmarks.points import Point
from handlers import LOCAL
from handlers.engines import DTYPES, EngineSpec, LoadedEngine
from handlers.engines.tensorrt import ONNX
from handlers.images.batching import Batcher
from handlers.images.preparation import prepare
from handlers.images.preprocess import Preprocess

PRESET = presets.of_command("resnet101")
MAX_PIXELS = 50_000_000
CALIBRATION = 8


@dataclass(frozen=True)
class ResNetWorkload:
    """A ResNet, its inputs and its reference outputs.

    layers: what one image costs. photographs: (P, 3, S, S) fp32, normalised, on the device. logits: (P, classes) of
    transformers' network in fp32.
    """

    model: str
    layers: list[Layer]
    photographs: torch.Tensor
    logits: Array

    unit = "images/s"

    def inputs(self, point: Point, precision: str, engine: LoadedEngine) -> list[torch.Tensor]:
        """One tensor (batch, 3, S, S), channels_last, in the precision: the photographs, repeated."""
        indices = torch.arange(point.batch, device=self.photographs.device) % len(self.photographs)
        images = self.photographs[indices].to(DTYPES[precision])
        return [images.contiguous(memory_format=torch.channels_last)]

    def reference(self, point: Point) -> Array:
        """The fp32 logits of `inputs`, (batch, classes)."""
        rows: Array = self.logits[np.arange(point.batch) % len(self.logits)]
        return rows

    def layers_at(self, point: Point) -> list[Layer]:
        """What the point costs in one call."""
        return [layer.times(point.batch) for layer in self.layers]


def preprocess_of(size: int) -> Preprocess:
    """ImageNet's preprocessing at another size: resized and cropped as 224 is from 256."""
    return Preprocess(size=size, resize=round(size * 256 / 224))


def workload(spec: EngineSpec) -> ResNetWorkload:
    """Read the spec's Hugging Face folder, and compute the network's fp32 logits of the photographs."""
    from transformers import AutoConfig

    from handlers.engines import networks

    config = AutoConfig.from_pretrained(spec.model_dir, **LOCAL)
    if not networks.is_resnet(config):  # whose layers are counted below
        raise ValueError(f"--model-dir holds a {config.model_type}; wanted: a ResNet, ResNeXt or Wide ResNet")
    preprocess = preprocess_of(spec.image_size)
    batcher = Batcher(preprocess, spec.device, torch.float32)
    photographs = batcher(
        [crop for file in sample_images.photographs() for crop in prepare(file, preprocess, MAX_PIXELS)]
    )
    logits = engine_loading.load("eager-fp32", spec).run(photographs).cpu().numpy()
    if not np.isfinite(logits).all():
        raise ValueError(f"the fp32 logits of {spec.model_dir} are not finite, so nothing can be compared with them")
    counted = layers.resnet_layers(config, spec.image_size)
    return ResNetWorkload(model_name(config), counted, photographs, logits)


def model_name(config: Any) -> str:
    """The name by the number of layers with weights (He et al.): resnet101; wider networks as torchvision does."""
    from handlers.engines import networks

    convolutions = 3 if config.layer_type == "bottleneck" else 2
    count, (groups, width) = convolutions * sum(config.depths) + 2, networks.breadth(config).values()
    if groups > 1:
        return f"resnext{count}_{groups}x{width}d"
    return f"resnet{count}" if width == 64 else f"wide_resnet{count}_{width / 64:g}"


def model_folder(model_dir: Path | None, folder: Path, size: int, onnx: bool) -> Path:
    """The folder that engines read: model_dir, or `folder` with random weights if that is None.

    onnx: whether TensorRT will read model.onnx. If model_dir lacks it, `folder` gets a copy of model_dir, and ONNX.
    """
    if model_dir is None:
        write_random(folder, size)
    if not onnx or (model_dir and (model_dir / ONNX).is_file()):
        return model_dir or folder
    if importlib.util.find_spec("onnx") is None:
        print("the package onnx is not installed, and TensorRT reads ONNX: scripts/setup serve tensorrt", flush=True)
        return model_dir or folder
    if model_dir is not None:
        shutil.copytree(model_dir, folder, dirs_exist_ok=True)
    _write_onnx(folder, size)
    return folder


def _write_onnx(folder: Path, size: int) -> None:
    from archive.onnx_export import export
    from handlers.engines import networks

    export(networks.load(folder, torch.float32), folder / ONNX, size)


def write_random(folder: Path, size: int) -> None:
    """A full-size ResNet-101 with random weights, calibrated on photographs so that fp16 does not overflow."""
    from archive import random_weights

    config = random_weights.resnet_config(PRESET.architecture)
    checkpoint = random_weights.image_checkpoint(
        config, sample_images.photographs()[:CALIBRATION], preprocess_of(size)
    )
    checkpoint.network().save_pretrained(folder)
