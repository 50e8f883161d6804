"""ResNets through cuDNN's fused convolutions: BatchNorm folded, convolution + bias (+ residual) + ReLU in one call.

Half precision, channels_last, one CUDA graph a batch bucket. Needs nothing but PyTorch.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import torch

from handlers.engines import Engine, EngineSpec
from handlers.engines.folding import Convolution, fold_resnet, run
from handlers.engines.graphs import BUCKETS, GraphedByBucket

KINDS = ("image-classifier",)
RANK = 10


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
    network = fold_resnet(model.eval(), spec.device, spec.dtype)
    graphed = GraphedByBucket(functools.partial(run, network, operations=CudnnOperations()))
    details: dict[str, object] = {
        "library": f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}",
        "memoryFormat": "channels_last",
        "graphs": list(BUCKETS),
    }
    return Engine(graphed, details)
