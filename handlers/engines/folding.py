"""A ResNet as a plain list of convolutions with BatchNorm folded in, and one way to run it.

At inference BatchNorm is an affine map of each channel, so it can be folded into the convolution before it (Jacob et
al., arXiv:1712.05877, section 3.2). What remains is convolution + bias (+ residual) + ReLU, which is one call in
libraries that fuse them.

In shapes: N images; I, O channels in and out; H, W and H', W' sides in and out, in pixels.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn

WITHOUT_CLASSIFIER = "ResNetModel"  # transformers' ResNet as an image encoder


@dataclass(frozen=True)
class Convolution:
    """A square convolution without dilation.

    Args:
        weight: (O, I / groups, k, k), channels_last.
        bias: (O,). Zeros for a shortcut: fold_resnet adds its bias to the last convolution of the block's body.
        stride: in pixels, the same in both directions.
        padding: in pixels, the same on all sides.
        groups: number of groups.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    stride: int
    padding: int
    groups: int = 1


class BatchNorm(NamedTuple):
    """An affine map of each channel, as BatchNorm applies it at inference. All tensors are (O,)."""

    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    eps: float


@dataclass(frozen=True)
class Unfolded:
    """A square convolution without dilation, and the BatchNorm after it.

    Args:
        weight: (O, I / groups, k, k).
        norm: what follows.
        stride, padding, groups: as in Convolution.
        bias: (O,), of the convolution; None if it has none.
    """

    weight: torch.Tensor
    norm: BatchNorm
    stride: int
    padding: int
    groups: int = 1
    bias: torch.Tensor | None = None

    def scale_and_bias(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the output channels without bias are scaled by, and shifted by: (O,), (O,), in fp64."""
        norm = self.norm
        scale = norm.weight.double() / (norm.variance.double() + norm.eps).sqrt()
        before = 0 if self.bias is None else self.bias.double()
        return scale, norm.bias.double() + (before - norm.mean.double()) * scale


@dataclass(frozen=True)
class Block:
    """A residual block: relu(body(x) + shortcut(x)).

    Args:
        body: at least two convolutions, with ReLU between them.
        shortcut: a convolution, or None for the identity.
    """

    body: tuple[Convolution, ...]
    shortcut: Convolution | None


@dataclass(frozen=True)
class FoldedResNet:
    """A ResNet without BatchNorm.

    Args:
        stem: the first convolution; max-pooling follows it.
        blocks: all residual blocks, in order.
        weight: (classes, hidden), of the classifier.
        bias: (classes,), of the classifier.
    """

    stem: Convolution
    blocks: tuple[Block, ...]
    weight: torch.Tensor
    bias: torch.Tensor


class ResNetOps(Protocol):
    """The calls that a folded ResNet is made of. All tensors are channels_last, of one dtype, on one device."""

    def conv_relu(self, images: torch.Tensor, conv: Convolution) -> torch.Tensor:
        """relu(conv(images)): (N, I, H, W) -> (N, O, H', W')"""
        ...

    def conv_add_relu(self, images: torch.Tensor, conv: Convolution, residual: torch.Tensor) -> torch.Tensor:
        """relu(conv(images) + residual): (N, I, H, W), (N, O, H', W') -> (N, O, H', W')"""
        ...

    def conv_add_conv_relu(
        self, images: torch.Tensor, conv: Convolution, source: torch.Tensor, shortcut: Convolution
    ) -> torch.Tensor:
        """relu(conv(images) + shortcut(source)): -> (N, O, H', W'). The shortcut's bias, zeros, is not added."""
        ...

    def block_tail(
        self, images: torch.Tensor, inner: Convolution, last: Convolution, source: torch.Tensor,
        shortcut: Convolution | None,
    ) -> torch.Tensor:  # fmt: skip
        """relu(last(relu(inner(images))) + shortcut(source)): the end of a block. None is the identity."""
        hidden = self.conv_relu(images, inner)
        if shortcut is None:
            return self.conv_add_relu(hidden, last, source)
        return self.conv_add_conv_relu(hidden, last, source, shortcut)

    def max_pool(self, images: torch.Tensor) -> torch.Tensor:
        """3x3, stride 2, padding 1: (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2))"""
        ...

    def classify(self, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Mean over (H, W), then a linear layer: (N, C, H, W), (classes, C), (classes,) -> (N, classes)"""
        ...


class TorchResNetOps(ResNetOps):
    """Plain PyTorch: the reference, and what tests run without a GPU."""

    def conv_relu(self, images: torch.Tensor, conv: Convolution) -> torch.Tensor:
        return convolve(images, conv).relu_()

    def conv_add_relu(self, images: torch.Tensor, conv: Convolution, residual: torch.Tensor) -> torch.Tensor:
        return convolve(images, conv).add_(residual).relu_()

    def conv_add_conv_relu(
        self, images: torch.Tensor, conv: Convolution, source: torch.Tensor, shortcut: Convolution
    ) -> torch.Tensor:
        projected = F.conv2d(source, shortcut.weight, None, shortcut.stride, shortcut.padding, groups=shortcut.groups)
        return self.conv_add_relu(images, conv, projected)

    def max_pool(self, images: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(images, 3, stride=2, padding=1)

    def classify(self, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.linear(images.mean(dim=(2, 3)), weight, bias)


def convolve(images: torch.Tensor, conv: Convolution) -> torch.Tensor:
    """conv(images), bias added, no activation: (N, I, H, W) -> (N, O, H', W')"""
    return F.conv2d(images, conv.weight, conv.bias, conv.stride, conv.padding, groups=conv.groups)


def run(network: FoldedResNet, images: torch.Tensor, operations: ResNetOps) -> torch.Tensor:
    """Run a folded ResNet.

    Args:
        network: in the images' dtype, on their device.
        images: (N, 3, H, W), normalised, channels_last.
        operations: what computes each call.

    Returns: logits (N, classes).
    """
    hidden = operations.max_pool(operations.conv_relu(images, network.stem))
    for block in network.blocks:
        source, (*first, inner, last) = hidden, block.body
        for conv in first:
            hidden = operations.conv_relu(hidden, conv)
        hidden = operations.block_tail(hidden, inner, last, source, block.shortcut)
    return operations.classify(hidden, network.weight, network.bias)


def why_not_foldable(folder: Path) -> str | None:
    """Return why `fold_resnet` cannot fold the network of a folder with config.json, or None. Reads no weights."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "resnet":
        return f"it runs ResNets, ResNeXts and Wide ResNets, and the network is of type {config.get('model_type')}"
    if WITHOUT_CLASSIFIER in (config.get("architectures") or ()):
        return "it runs classifiers, and the network is an image encoder"
    activation = config.get("hidden_act", "relu")
    return None if activation == "relu" else f"it fuses relu, and the activation is {activation}"


def fold_resnet(model: Any, device: torch.device, dtype: torch.dtype) -> FoldedResNet:
    """Fold a ResNet: computed in fp64, then cast once.

    Args:
        model: a ResNet of handlers.engines.networks, in eval mode. It stays as it is.
        device: of the result.
        dtype: of the result.

    Raises:
        ValueError: for an activation other than ReLU, or layers that are not a ResNet's.
    """
    if model.config.hidden_act != "relu":
        raise ValueError(f"the activation is {model.config.hidden_act}; only relu can be fused")
    blocks = (_unfolded_block(block) for stage in model.resnet.encoder.stages for block in stage.layers)
    stem, classifier = model.resnet.embedder.embedder, model.classifier[-1]
    return fold(
        _unfolded(stem.convolution, stem.normalization), blocks, (classifier.weight, classifier.bias), device, dtype
    )


@torch.no_grad()
def fold(
    stem: Unfolded,
    blocks: Iterable[tuple[Sequence[Unfolded], Unfolded | None]],
    classifier: tuple[torch.Tensor, torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> FoldedResNet:
    """Fold the layers of a ResNet: computed in fp64, then cast once. The result shares no memory with them.

    Args:
        stem: the first convolution.
        blocks: body and shortcut of each residual block, in order. Each is folded before the next one is asked for.
        classifier: (classes, hidden), (classes,).
        device: of the result.
        dtype: of the result.
    """

    def fold_block(body: Sequence[Unfolded], shortcut: Unfolded | None) -> Block:
        *first, last = body
        folded = [_fold(layer, device, dtype) for layer in first]
        if shortcut is None:
            return Block((*folded, _fold(last, device, dtype)), None)
        projected, extra = _fold(shortcut, device, dtype), shortcut.scale_and_bias()[1]
        without_bias = dataclasses.replace(projected, bias=torch.zeros_like(projected.bias))
        return Block((*folded, _fold(last, device, dtype, extra)), without_bias)

    weight, bias = (values.to(device, dtype, copy=True) for values in classifier)
    return FoldedResNet(_fold(stem, device, dtype), tuple(fold_block(*block) for block in blocks), weight, bias)


def contiguous(network: FoldedResNet) -> FoldedResNet:
    """Return the network with weights (O, I, k, k) in PyTorch's default layout, for converters that read memory."""

    def plain(conv: Convolution) -> Convolution:
        return dataclasses.replace(conv, weight=conv.weight.contiguous())

    blocks = [
        Block(tuple(map(plain, block.body)), None if block.shortcut is None else plain(block.shortcut))
        for block in network.blocks
    ]
    return dataclasses.replace(network, stem=plain(network.stem), blocks=tuple(blocks))


def pad_stem(network: FoldedResNet, channels: int) -> FoldedResNet:
    """Return a network that takes `channels` channels and ignores all but the first 3: its other weights are zero."""
    weight = network.stem.weight
    padded = weight.new_zeros((weight.shape[0], channels, *weight.shape[2:]))
    padded[:, : weight.shape[1]] = weight
    stem = dataclasses.replace(network.stem, weight=padded.contiguous(memory_format=torch.channels_last))
    return dataclasses.replace(network, stem=stem)


def _unfolded_block(block: Any) -> tuple[list[Unfolded], Unfolded | None]:
    """Return body and shortcut of a residual block of transformers."""
    body = [_unfolded(layer.convolution, layer.normalization) for layer in block.layer]
    return body, None if isinstance(block.shortcut, nn.Identity) else _unfolded(*block.shortcut.children())


def _unfolded(conv: Any, norm: Any) -> Unfolded:
    """Return a Conv2d and its BatchNorm2d. Raises ValueError if the convolution is not a Convolution's kind."""
    plain = conv.dilation == (1, 1) and isinstance(conv.padding, tuple)
    if not plain or any(len(set(sides)) != 1 for sides in (conv.kernel_size, conv.stride, conv.padding)):
        raise ValueError(f"{conv} is dilated or not square, which this does not fuse")
    statistics = BatchNorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    return Unfolded(conv.weight, statistics, conv.stride[0], conv.padding[0], conv.groups, conv.bias)


def _fold(
    layer: Unfolded, device: torch.device, dtype: torch.dtype, extra: torch.Tensor | None = None
) -> Convolution:
    """Fold one layer. extra: (O,) fp64, added to the bias; or None."""
    scale, bias = layer.scale_and_bias()
    weight = layer.weight * scale.view(-1, 1, 1, 1)  # in fp64, as the scale is, without a copy of the weight in fp64
    folded = weight.to(device, dtype).to(memory_format=torch.channels_last)
    bias = bias if extra is None else bias + extra
    return Convolution(folded, bias.to(device, dtype), layer.stride, layer.padding, layer.groups)
