"""ResNets through cuDNN's fused convolutions: BatchNorm folded, convolution + bias (+ residual) + ReLU in one call.

Half precision, channels_last, one CUDA graph a batch bucket. Needs nothing but PyTorch.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F

from handlers.engines import Engine, EngineSpec
from handlers.engines.folding import Convolution, fold_resnet, pad_stem, run
from handlers.engines.graphs import BUCKETS, GraphedByBucket

KINDS = ("image-classifier",)
RANK = 10


SMALL_ROWS = 3136  # N*H*W up to which 1x1 convolutions go to Triton's kernel
STEM_CHANNELS = 4  # cuDNN's kernels for 4 input channels are faster than those for 3


class CudnnOperations:
    """The fused calls as PyTorch binds cuDNN's."""

    def relu(self, images: torch.Tensor, conv: Convolution) -> torch.Tensor:
        stride, padding = [conv.stride] * 2, [conv.padding] * 2
        return torch.cudnn_convolution_relu(images, conv.weight, conv.bias, stride, padding, [1, 1], 1)

    def add_relu(self, images: torch.Tensor, conv: Convolution, residual: torch.Tensor) -> torch.Tensor:
        stride, padding = [conv.stride] * 2, [conv.padding] * 2
        return torch.cudnn_convolution_add_relu(
            images, conv.weight, residual, 1.0, conv.bias, stride, padding, [1, 1], 1
        )

    def shortcut(self, images: torch.Tensor, conv: Convolution) -> torch.Tensor:
        """A matrix product of the pixels that the stride keeps, where cuDNN's unfused kernels leave time unused."""
        kept = images[:, :, :: conv.stride, :: conv.stride].permute(0, 2, 3, 1)  # (N, H', W', I)
        return F.linear(kept, conv.weight.flatten(1)).permute(0, 3, 1, 2)  # (N, O, H', W')

    def max_pool(self, images: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(images, 3, stride=2, padding=1)


class TritonOperations(CudnnOperations):
    """cuDNN's, and Triton's kernels where those measured faster."""

    def relu(self, images: torch.Tensor, conv: Convolution) -> torch.Tensor:
        if _is_small(images, conv):
            out: torch.Tensor = kernels().pointwise(images, conv.weight, conv.bias, None)
            return out
        return super().relu(images, conv)

    def add_relu(self, images: torch.Tensor, conv: Convolution, residual: torch.Tensor) -> torch.Tensor:
        if _is_small(images, conv):
            out: torch.Tensor = kernels().pointwise(images, conv.weight, conv.bias, residual)
            return out
        return super().add_relu(images, conv, residual)

    def max_pool(self, images: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = kernels().max_pool(images)
        return pooled


def kernels() -> Any:
    """handlers.kernels.resnet, which imports Triton: torch for CUDA on Linux brings it."""
    return import_module("handlers.kernels.resnet")


def operations() -> CudnnOperations:
    """Triton's where it is installed. Which, is in the engine's details."""
    return TritonOperations() if importlib.util.find_spec("triton") else CudnnOperations()


def _is_small(images: torch.Tensor, conv: Convolution) -> bool:
    rows = images.shape[0] * images.shape[2] * images.shape[3]
    return rows <= SMALL_ROWS and bool(kernels().pointwise_fits(images, conv.weight, conv.stride))


def objection(spec: EngineSpec) -> str | None:
    """Why not: it needs an NVIDIA GPU, half precision, and a ResNet with ReLU."""
    if spec.device.type != "cuda" or torch.version.hip is not None or not torch.backends.cudnn.is_available():
        return f"it needs an NVIDIA GPU with cuDNN, and the device is {spec.device}"
    if spec.precision not in ("fp16", "bf16"):
        return f"it runs fp16 and bf16, and the precision is {spec.precision}"
    activation = json.loads((spec.model_dir / "config.json").read_text(encoding="utf-8")).get("hidden_act", "relu")
    return None if activation == "relu" else f"it fuses relu, and the activation is {activation}"


def load(spec: EngineSpec) -> Engine:
    """Load a Hugging Face folder's ResNet, folded and cast once. Raises ValueError where it cannot be fused."""
    from transformers import ResNetForImageClassification

    model: Any = ResNetForImageClassification.from_pretrained(
        spec.model_dir, dtype=torch.float32, local_files_only=True
    )
    network = pad_stem(fold_resnet(model.eval(), spec.device, spec.dtype), STEM_CHANNELS)
    calls = operations()
    graphed = GraphedByBucket(functools.partial(run, network, operations=calls), STEM_CHANNELS)
    details: dict[str, object] = {
        "library": f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}",
        "kernels": _kernels(calls),
        "memoryFormat": "channels_last",
        "graphs": list(BUCKETS),
    }
    return Engine(graphed, details)


def _kernels(calls: CudnnOperations) -> str:
    if isinstance(calls, TritonOperations):
        return f"cuDNN, and Triton {importlib.metadata.version('triton')} for pooling and small 1x1 convolutions"
    return "cuDNN and PyTorch; Triton is not installed, which would be faster"
