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
from handlers.engines.folding import Convolution, Operations, fold_resnet, pad_stem, run
from handlers.engines.graphs import BUCKETS, GraphedByBucket

KINDS = ("image-classifier",)
RANK = 10


# Up to where Triton's kernels are faster than cuDNN's on an H200: of 1x1 convolutions the elements that they put out
# times the square of the channels that they take, N*H*W*O*I*I, and those channels; of 3x3 convolutions, and of the
# classifier, images.
SMALL, DEEPEST = 106e9, 1024
FEW_IMAGES = 2
MANY_PIXELS = 2 * 56 * 56  # from which a 3x3 convolution of 64 channels and the 1x1 one behind it are one kernel
STEM_CHANNELS = 4  # cuDNN's kernels for 4 input channels are faster than those for 3


class CudnnOperations(Operations):
    """The fused calls as PyTorch binds cuDNN's."""

    def relu(self, images: torch.Tensor, conv: Convolution) -> torch.Tensor:
        stride, padding = [conv.stride] * 2, [conv.padding] * 2
        return torch.cudnn_convolution_relu(images, conv.weight, conv.bias, stride, padding, [1, 1], conv.groups)

    def add_relu(self, images: torch.Tensor, conv: Convolution, residual: torch.Tensor) -> torch.Tensor:
        stride, padding = [conv.stride] * 2, [conv.padding] * 2
        return torch.cudnn_convolution_add_relu(
            images, conv.weight, residual, 1.0, conv.bias, stride, padding, [1, 1], conv.groups
        )

    def project_relu(
        self, images: torch.Tensor, conv: Convolution, source: torch.Tensor, shortcut: Convolution
    ) -> torch.Tensor:
        """The shortcut as one matrix product of the pixels that its stride keeps, side by side."""
        kept = source[:, :, :: shortcut.stride, :: shortcut.stride].permute(0, 2, 3, 1)  # (N, H', W', I)
        projected = F.linear(kept.contiguous(), shortcut.weight.flatten(1))  # (N, H', W', O)
        return self.add_relu(images, conv, projected.permute(0, 3, 1, 2))

    def max_pool(self, images: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(images, 3, stride=2, padding=1)

    def classify(self, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.linear(images.mean(dim=(2, 3)), weight, bias)


class TritonOperations(CudnnOperations):
    """cuDNN's, and Triton's kernels where those measured faster."""

    def relu(self, images: torch.Tensor, conv: Convolution) -> torch.Tensor:
        out: torch.Tensor
        if _is_small(images, conv):
            out = kernels().pointwise(images, conv.weight, conv.bias, None)
            return out
        if conv.groups == 1 and len(images) <= FEW_IMAGES and kernels().window_fits(images, conv.weight):
            out = kernels().window(images, conv.weight, conv.bias, conv.stride)
            return out
        return super().relu(images, conv)

    def add_relu(self, images: torch.Tensor, conv: Convolution, residual: torch.Tensor) -> torch.Tensor:
        if _is_small(images, conv):
            out: torch.Tensor = kernels().pointwise(images, conv.weight, conv.bias, residual)
            return out
        return super().add_relu(images, conv, residual)

    def project_relu(
        self, images: torch.Tensor, conv: Convolution, source: torch.Tensor, shortcut: Convolution
    ) -> torch.Tensor:
        """Both products summed in one kernel, at every size: what the shortcut gives is never written to memory."""
        if conv.stride != 1 or not (_is_pointwise(images, conv) and _is_pointwise(source, shortcut)):
            return super().project_relu(images, conv, source, shortcut)
        out: torch.Tensor = kernels().project(
            images, conv.weight, conv.bias, source, shortcut.weight, shortcut.stride
        )
        return out

    def close(
        self, images: torch.Tensor, inner: Convolution, last: Convolution, source: torch.Tensor,
        shortcut: Convolution | None,
    ) -> torch.Tensor:  # fmt: skip
        """In one kernel where that is faster: what lies between the convolutions is never written to memory."""
        if not _is_one_kernel(images, inner, last, source, shortcut):
            return super().close(images, inner, last, source, shortcut)
        out: torch.Tensor = kernels().window_pointwise(
            images, inner.weight, inner.bias, last.weight, last.bias, source,
            None if shortcut is None else shortcut.weight,
        )  # fmt: skip
        return out

    def max_pool(self, images: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = kernels().max_pool(images)
        return pooled

    def classify(self, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if len(images) > FEW_IMAGES:
            return super().classify(images, weight, bias)
        logits: torch.Tensor = kernels().classify(images, weight, bias)
        return logits


def kernels() -> Any:
    """handlers.kernels.resnet, which imports Triton: torch for CUDA on Linux brings it."""
    return import_module("handlers.kernels.resnet")


def operations() -> CudnnOperations:
    """Triton's where it is installed. Which, is in the engine's details."""
    return TritonOperations() if importlib.util.find_spec("triton") else CudnnOperations()


def _is_small(images: torch.Tensor, conv: Convolution) -> bool:
    pixels, (out, depth) = images.shape[0] * images.shape[2] * images.shape[3], conv.weight.shape[:2]
    return pixels * out * depth**2 <= SMALL and depth <= DEEPEST and conv.stride == 1 and _is_pointwise(images, conv)


def _is_pointwise(images: torch.Tensor, conv: Convolution) -> bool:
    """Whether Triton's kernel of 1x1 convolutions can run this one, whatever its stride."""
    return conv.groups == 1 and bool(kernels().pointwise_fits(images, conv.weight))


def _is_one_kernel(
    images: torch.Tensor, inner: Convolution, last: Convolution, source: torch.Tensor, shortcut: Convolution | None
) -> bool:
    plain = all(conv.stride == conv.groups == 1 for conv in (inner, last, *([shortcut] if shortcut else [])))
    if not plain or images.shape[0] * images.shape[2] * images.shape[3] < MANY_PIXELS:
        return False
    fits = kernels().window_pointwise_fits(images, inner.weight, last.weight)
    return fits and (shortcut is None or (source.shape == images.shape and _is_pointwise(source, shortcut)))


def objection(spec: EngineSpec) -> str | None:
    """Why not: it needs an NVIDIA GPU, half precision, and a ResNet, ResNeXt or Wide ResNet with ReLU."""
    if spec.device.type != "cuda" or torch.version.hip is not None or not torch.backends.cudnn.is_available():
        return f"it needs an NVIDIA GPU with cuDNN, and the device is {spec.device}"
    return unfit(spec)


def unfit(spec: EngineSpec) -> str | None:
    """Why it would run `spec` on no machine."""
    if spec.precision not in ("fp16", "bf16"):
        return f"it runs fp16 and bf16, and the precision is {spec.precision}"
    config = json.loads((spec.model_dir / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "resnet":
        return f"it runs ResNets, ResNeXts and Wide ResNets, and the network is of type {config.get('model_type')}"
    activation = config.get("hidden_act", "relu")
    return None if activation == "relu" else f"it fuses relu, and the activation is {activation}"


def load(spec: EngineSpec) -> Engine:
    """Load a Hugging Face folder's ResNet, folded and cast once. Raises ValueError where it cannot be fused."""
    from handlers.engines import networks

    model = networks.load(spec.model_dir, torch.float32)
    network = pad_stem(fold_resnet(model, spec.device, spec.dtype), STEM_CHANNELS)
    calls = operations()
    graphed = GraphedByBucket(functools.partial(run, network, operations=calls), STEM_CHANNELS)
    details: dict[str, object] = {
        "library": f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}",
        "network": networks.title(spec.model_dir),
        "kernels": _kernels(calls),
        "memoryFormat": "channels_last",
        "graphs": list(BUCKETS),
    }
    return Engine(graphed, details)


def _kernels(calls: CudnnOperations) -> str:
    if isinstance(calls, TritonOperations):
        version = importlib.metadata.version("triton")
        return (
            f"cuDNN, and Triton {version} for pooling, the ends of stage 1's blocks, blocks that change their size, "
            f"and small convolutions"
        )
    return "cuDNN and PyTorch; Triton is not installed, which would be faster"
