"""A ResNet -> a plain list of convolutions with BatchNorm folded in, and one way to run it.

BatchNorm at inference is an affine map of each channel, so it moves into the convolution before it (Jacob et al.,
arXiv:1712.05877, section 3.2). What is left is convolution + bias, + residual, + ReLU: one fused call each where the
library offers it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Convolution:
    """weight: (O, I / groups, k, k), channels_last. bias: (O,). Square kernels, no dilation."""

    # A shortcut has a bias of zeros, which nobody adds: fold_resnet moves it into its body's last convolution.

    weight: torch.Tensor
    bias: torch.Tensor
    stride: int
    padding: int
    groups: int = 1


@dataclass(frozen=True)
class Block:
    """A residual block: relu(body(x) + shortcut(x)), ReLU between the body's convolutions; None is the identity.

    body: of at least two.
    """

    body: tuple[Convolution, ...]
    shortcut: Convolution | None


@dataclass(frozen=True)
class FoldedResNet:
    """weight: (classes, hidden) and bias: (classes,) of the classifier."""

    stem: Convolution
    blocks: tuple[Block, ...]
    weight: torch.Tensor
    bias: torch.Tensor


class Operations(Protocol):
    """The calls of a ResNet; all tensors channels_last, of one dtype, on one device."""

    def relu(self, images: torch.Tensor, conv: Convolution) -> torch.Tensor:
        """relu(conv(images))"""
        ...

    def add_relu(self, images: torch.Tensor, conv: Convolution, residual: torch.Tensor) -> torch.Tensor:
        """relu(conv(images) + residual)"""
        ...

    def project_relu(
        self, images: torch.Tensor, conv: Convolution, source: torch.Tensor, shortcut: Convolution
    ) -> torch.Tensor:
        """relu(conv(images) + shortcut(source)); the shortcut's bias is zeros, and is not added"""
        ...

    def close(
        self, images: torch.Tensor, inner: Convolution, last: Convolution, source: torch.Tensor,
        shortcut: Convolution | None,
    ) -> torch.Tensor:  # fmt: skip
        """The end of a block: relu(last(relu(inner(images))) + shortcut(source)); None is the identity"""
        hidden = self.relu(images, inner)
        if shortcut is None:
            return self.add_relu(hidden, last, source)
        return self.project_relu(hidden, last, source, shortcut)

    def max_pool(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2)): 3x3, stride 2, padding 1"""
        ...

    def classify(self, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The mean over (H, W), then a linear layer: (N, C, H, W), (classes, C), (classes,) -> (N, classes)"""
        ...


class TorchOperations(Operations):
    """The fused calls in plain PyTorch: the reference, and what tests run where there is no GPU."""

    def relu(self, images: torch.Tensor, conv: Convolution) -> torch.Tensor:
        return convolve(images, conv).relu_()

    def add_relu(self, images: torch.Tensor, conv: Convolution, residual: torch.Tensor) -> torch.Tensor:
        return convolve(images, conv).add_(residual).relu_()

    def project_relu(
        self, images: torch.Tensor, conv: Convolution, source: torch.Tensor, shortcut: Convolution
    ) -> torch.Tensor:
        projected = F.conv2d(source, shortcut.weight, None, shortcut.stride, shortcut.padding, groups=shortcut.groups)
        return self.add_relu(images, conv, projected)

    def max_pool(self, images: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(images, 3, stride=2, padding=1)

    def classify(self, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.linear(images.mean(dim=(2, 3)), weight, bias)


def convolve(images: torch.Tensor, conv: Convolution) -> torch.Tensor:
    """(N, I, H, W) -> (N, O, H', W'), bias added, no activation."""
    return F.conv2d(images, conv.weight, conv.bias, conv.stride, conv.padding, groups=conv.groups)


def run(network: FoldedResNet, images: torch.Tensor, operations: Operations) -> torch.Tensor:
    """(N, 3, H, W) normalised images -> logits (N, classes)."""
    hidden = operations.max_pool(operations.relu(images, network.stem))
    for block in network.blocks:
        source, (*first, inner, last) = hidden, block.body
        for conv in first:
            hidden = operations.relu(hidden, conv)
        hidden = operations.close(hidden, inner, last, source, block.shortcut)
    return operations.classify(hidden, network.weight, network.bias)


def fold_resnet(model: Any, device: torch.device, dtype: torch.dtype) -> FoldedResNet:
    """Fold a ResNet of handlers.engines.networks in eval mode; computed in fp64, then cast once.

    Raises ValueError for activations other than ReLU, or layers that are not a ResNet's.
    """
    if model.config.hidden_act != "relu":
        raise ValueError(f"the activation is {model.config.hidden_act}; only relu can be fused")

    def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d, extra: torch.Tensor | None = None) -> Convolution:
        return _fold(conv, norm, device, dtype, extra)

    def fold_block(block: Any) -> Block:
        *first, last = [(layer.convolution, layer.normalization) for layer in block.layer]
        shortcut, extra = None, None
        if not isinstance(block.shortcut, nn.Identity):
            convolution, norm = block.shortcut.children()
            shortcut = fold(convolution, norm)
            extra = _scale_and_bias(convolution, norm)[1]
            shortcut = dataclasses.replace(shortcut, bias=torch.zeros_like(shortcut.bias))
        return Block((*(fold(*pair) for pair in first), fold(*last, extra)), shortcut)

    blocks = [fold_block(block) for stage in model.resnet.encoder.stages for block in stage.layers]
    stem, classifier = model.resnet.embedder.embedder, model.classifier[-1]
    return FoldedResNet(
        fold(stem.convolution, stem.normalization),
        tuple(blocks),
        classifier.weight.detach().to(device, dtype),
        classifier.bias.detach().to(device, dtype),
    )


def contiguous(network: FoldedResNet) -> FoldedResNet:
    """The same with (O, I, k, k) weights as PyTorch lays them out, for converters that read their memory."""

    def plain(conv: Convolution) -> Convolution:
        return dataclasses.replace(conv, weight=conv.weight.contiguous())

    blocks = [
        Block(tuple(map(plain, block.body)), None if block.shortcut is None else plain(block.shortcut))
        for block in network.blocks
    ]
    return dataclasses.replace(network, stem=plain(network.stem), blocks=tuple(blocks))


def pad_stem(network: FoldedResNet, channels: int) -> FoldedResNet:
    """The same function of images that have channels appended to the first 3: their weights are zero."""
    weight = network.stem.weight
    padded = weight.new_zeros((weight.shape[0], channels, *weight.shape[2:]))
    padded[:, : weight.shape[1]] = weight
    stem = dataclasses.replace(network.stem, weight=padded.contiguous(memory_format=torch.channels_last))
    return dataclasses.replace(network, stem=stem)


def _fold(conv: Any, norm: Any, device: torch.device, dtype: torch.dtype, extra: torch.Tensor | None) -> Convolution:
    plain = conv.dilation == (1, 1) and isinstance(conv.padding, tuple)
    if not plain or any(len(set(sides)) != 1 for sides in (conv.kernel_size, conv.stride, conv.padding)):
        raise ValueError(f"{conv} is dilated or not square, which this does not fuse")
    scale, bias = _scale_and_bias(conv, norm)
    weight = conv.weight.detach().double() * scale.view(-1, 1, 1, 1)
    folded = weight.to(device, dtype).to(memory_format=torch.channels_last)
    bias = bias if extra is None else bias + extra
    return Convolution(folded, bias.to(device, dtype), conv.stride[0], conv.padding[0], conv.groups)


@torch.no_grad()
def _scale_and_bias(conv: Any, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each output channel, (O,) and (O,), in fp64."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    before = 0 if conv.bias is None else conv.bias.double()
    return scale, norm.bias.double() + (before - norm.running_mean.double()) * scale
