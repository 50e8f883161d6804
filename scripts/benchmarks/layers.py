"""What a network has to compute and to move, layer by layer, and how fast a machine could be at it.

FLOPs are 2 a multiply-add, of convolutions and linear layers. Bytes are what each of those reads (its input, its
weight, and the residual that a block's last convolution adds) and writes, once each: BatchNorm, ReLU and the addition
are taken as fused, pooling and biases as free, and no layer as finding its input in a cache. A layer needs the longer
of FLOPs / matmul ceiling and bytes / copy bandwidth, and the network the sum over its layers: the memory roofline.
Engines that keep activations in a large L2 cache from one layer to the next may beat it at small batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Layer:
    """flops: of one item. activations: elements that one item reads and writes. weights: elements, once a batch."""

    flops: int
    activations: int
    weights: int


def flops_per_item(layers: Sequence[Layer]) -> int:
    """FLOPs of one item through all layers."""
    return sum(layer.flops for layer in layers)


def roofline_ms(layers: Sequence[Layer], batch: int, item_bytes: int, tflops: float, tb_per_s: float) -> float:
    """The memory roofline of a batch in milliseconds; item_bytes: of one element. See the module."""
    seconds = 0.0
    for layer in layers:
        moved = (layer.activations * batch + layer.weights) * item_bytes
        seconds += max(layer.flops * batch / (tflops * 1e12), moved / (tb_per_s * 1e12))
    return seconds * 1e3


def count(network: nn.Module, example: torch.Tensor, adding: Sequence[nn.Module] = ()) -> list[Layer]:
    """The layers that `network` runs on `example`, (1, ...); all may be on the meta device.

    adding: those whose output a residual of its size is added to.
    """
    layers: list[Layer] = []

    def note(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight, read = module.weight, inputs[0].numel()
        flops = 2 * output.numel() * (weight.numel() // weight.shape[0])
        residual = output.numel() if any(module is one for one in adding) else 0
        layers.append(Layer(flops, read + residual + output.numel(), weight.numel()))

    modules = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    hooks = [module.register_forward_hook(note) for module in modules]
    with torch.no_grad():
        network(example)
    for hook in hooks:
        hook.remove()
    return layers


def resnet_layers(config: Any, size: int) -> list[Layer]:
    """The layers of a transformers ResNetForImageClassification for one image of size x size pixels."""
    from transformers import ResNetForImageClassification
    from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer

    with torch.device("meta"):
        network: Any = ResNetForImageClassification(config).train(False)
        example = torch.empty(1, config.num_channels, size, size)
    blocks: list[Any] = [
        one for one in network.modules() if isinstance(one, (ResNetBasicLayer, ResNetBottleNeckLayer))
    ]
    return count(network, example, [block.layer[-1].convolution for block in blocks])
