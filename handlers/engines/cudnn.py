"""ResNets through cuDNN's fused convolutions: BatchNorm folded; convolution, bias, residual and ReLU in one call.

Runs in half precision and channels_last, with one CUDA graph per batch bucket. It needs nothing but PyTorch; with
Triton, kernels of handlers.kernels.resnet replace cuDNN's where they are faster.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F

from handlers.engines import resnet_folders
from handlers.engines.base import Engine, EngineSpec, LoadedEngine
from handlers.engines.folding import Convolution, ResNetOps, pad_stem, run, why_not_foldable
from handlers.engines.graphs import BUCKETS, GraphedByBucket
from handlers.engines.image_inputs import why_not_squares
from handlers.engines.titles import title

# Crossover points measured on an H200; up to them Triton is faster than cuDNN.
# 1x1 convolution: N*H*W*O*I^2 <= SMALL and I <= DEEPEST. 3x3 convolution and classifier: batch size <= FEW_IMAGES.
SMALL, DEEPEST = 106e9, 1024
FEW_IMAGES = 2
# From N*H*W >= MANY_PIXELS on, a 3x3 convolution of 64 channels and the 1x1 one after it are faster as one kernel.
MANY_PIXELS = 2 * 56 * 56
STEM_CHANNELS = 4  # cuDNN's kernels for 4 input channels are faster than those for 3


class Cudnn(Engine):
    """Runs ResNets, ResNeXts and Wide ResNets with ReLU, in fp16 and bf16, on NVIDIA GPUs."""

    kinds = ("image-classifier",)
    rank = 10

    def why_not_here(self, spec: EngineSpec) -> str | None:
        if spec.device.type != "cuda" or torch.version.hip is not None or not torch.backends.cudnn.is_available():
            return f"it needs an NVIDIA GPU with cuDNN, and the device is {spec.device}"
        return self.why_never(spec)

    def why_never(self, spec: EngineSpec) -> str | None:
        if spec.precision not in ("fp16", "bf16"):
            return f"it runs fp16 and bf16, and the precision is {spec.precision}"
        return why_not_squares(spec) or why_not_foldable(spec.model_dir)

    def load(self, spec: EngineSpec) -> LoadedEngine:
        """Load the network, fold it and cast it once. Raises ValueError if it cannot be fused."""
        network = pad_stem(resnet_folders.folded(spec), STEM_CHANNELS)
        operations = best_operations()
        graphed = GraphedByBucket(functools.partial(run, network, operations=operations), STEM_CHANNELS)
        details: dict[str, object] = {
            "library": f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}",
            "network": title(spec.model_dir),
            "kernels": _described(operations),
            "memoryFormat": "channels_last",
            "graphs": list(BUCKETS),
        }
        return LoadedEngine(graphed, details)


ENGINE = Cudnn()


class CudnnResNetOps(ResNetOps):
    """cuDNN's fused calls, as PyTorch binds them."""

    def conv_relu(self, images: torch.Tensor, conv: Convolution) -> torch.Tensor:
        stride, padding = [conv.stride] * 2, [conv.padding] * 2
        return torch.cudnn_convolution_relu(images, conv.weight, conv.bias, stride, padding, [1, 1], conv.groups)

    def conv_add_relu(self, images: torch.Tensor, conv: Convolution, residual: torch.Tensor) -> torch.Tensor:
        stride, padding = [conv.stride] * 2, [conv.padding] * 2
        return torch.cudnn_convolution_add_relu(
            images, conv.weight, residual, 1.0, conv.bias, stride, padding, [1, 1], conv.groups
        )

    def conv_add_conv_relu(
        self, images: torch.Tensor, conv: Convolution, source: torch.Tensor, shortcut: Convolution
    ) -> torch.Tensor:
        """The shortcut is computed as one matrix product, of the pixels that its stride keeps."""
        kept = source[:, :, :: shortcut.stride, :: shortcut.stride].permute(0, 2, 3, 1)  # (N, H', W', I)
        projected = F.linear(kept.contiguous(), shortcut.weight.flatten(1))  # (N, H', W', O)
        return self.conv_add_relu(images, conv, projected.permute(0, 3, 1, 2))

    def max_pool(self, images: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(images, 3, stride=2, padding=1)

    def classify(self, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.linear(images.mean(dim=(2, 3)), weight, bias)


class TritonResNetOps(CudnnResNetOps):
    """Triton's kernels where they measured faster, else cuDNN's."""

    def conv_relu(self, images: torch.Tensor, conv: Convolution) -> torch.Tensor:
        out: torch.Tensor
        if _is_small(images, conv):
            out = kernels().conv1x1_relu(images, conv.weight, conv.bias, None)
            return out
        if conv.groups == 1 and len(images) <= FEW_IMAGES and kernels().conv3x3_fits(images, conv.weight):
            out = kernels().conv3x3_relu(images, conv.weight, conv.bias, conv.stride)
            return out
        return super().conv_relu(images, conv)

    def conv_add_relu(self, images: torch.Tensor, conv: Convolution, residual: torch.Tensor) -> torch.Tensor:
        if _is_small(images, conv):
            out: torch.Tensor = kernels().conv1x1_relu(images, conv.weight, conv.bias, residual)
            return out
        return super().conv_add_relu(images, conv, residual)

    def conv_add_conv_relu(
        self, images: torch.Tensor, conv: Convolution, source: torch.Tensor, shortcut: Convolution
    ) -> torch.Tensor:
        """At every size one kernel sums both products, so the shortcut's output is never written to memory."""
        if conv.stride != 1 or not (_is_conv1x1(images, conv) and _is_conv1x1(source, shortcut)):
            return super().conv_add_conv_relu(images, conv, source, shortcut)
        out: torch.Tensor = kernels().conv1x1_add_conv1x1_relu(
            images, conv.weight, conv.bias, source, shortcut.weight, shortcut.stride
        )
        return out

    def block_tail(
        self, images: torch.Tensor, inner: Convolution, last: Convolution, source: torch.Tensor,
        shortcut: Convolution | None,
    ) -> torch.Tensor:  # fmt: skip
        """One kernel, if that is faster: what lies between the convolutions is then never written to memory."""
        if not _is_one_kernel(images, inner, last, source, shortcut):
            return super().block_tail(images, inner, last, source, shortcut)
        out: torch.Tensor = kernels().conv3x3_conv1x1_relu(
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
    """Import handlers.kernels.resnet, which needs Triton. torch for CUDA on Linux brings it."""
    return import_module("handlers.kernels.resnet")


def best_operations() -> CudnnResNetOps:
    """Return Triton's operations if Triton is installed, else cuDNN's. The engine's details say which."""
    return TritonResNetOps() if importlib.util.find_spec("triton") else CudnnResNetOps()


def _is_small(images: torch.Tensor, conv: Convolution) -> bool:
    pixels, (out, depth) = images.shape[0] * images.shape[2] * images.shape[3], conv.weight.shape[:2]
    return pixels * out * depth**2 <= SMALL and depth <= DEEPEST and conv.stride == 1 and _is_conv1x1(images, conv)


def _is_conv1x1(images: torch.Tensor, conv: Convolution) -> bool:
    """Whether Triton's kernel for 1x1 convolutions can run this one. Its stride does not matter here."""
    return conv.groups == 1 and bool(kernels().conv1x1_fits(images, conv.weight))


def _is_one_kernel(
    images: torch.Tensor, inner: Convolution, last: Convolution, source: torch.Tensor, shortcut: Convolution | None
) -> bool:
    """Whether Triton's kernel for the end of a block can run this one, and is faster."""
    plain = all(conv.stride == conv.groups == 1 for conv in (inner, last, *([shortcut] if shortcut else [])))
    if not plain or images.shape[0] * images.shape[2] * images.shape[3] < MANY_PIXELS:
        return False
    fits = kernels().conv3x3_conv1x1_fits(images, inner.weight, last.weight)
    return fits and (shortcut is None or (source.shape == images.shape and _is_conv1x1(source, shortcut)))


def _described(operations: CudnnResNetOps) -> str:
    if isinstance(operations, TritonResNetOps):
        version = importlib.metadata.version("triton")
        return (
            f"cuDNN, and Triton {version} for pooling, the ends of stage 1's blocks, blocks that change their size, "
            f"and small convolutions"
        )
    return "cuDNN and PyTorch; Triton is not installed, which would be faster"
