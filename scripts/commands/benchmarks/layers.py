"""What a network has to compute and to move, layer by layer, and the least time that a machine needs for it.

FLOPs: 2 per multiply-add, of convolutions, linear layers and the two products of attention; padding of texts does not
count. Bytes: what each of these layers reads (its input, its weight, and the residual that a block's last layer adds)
and writes, once each. This assumes that norms, activations and additions are fused, that attention is one kernel that
does not write its scores, that embeddings, pooling and biases cost nothing, and that no input is in a cache.

A layer needs the longer of FLOPs / matmul ceiling and bytes / copy bandwidth. The network needs the sum over its
layers: the memory roofline. An engine that keeps activations in a large L2 cache between layers can be faster at
small batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from handlers.engines import DTYPES


@dataclass(frozen=True)
class Layer:
    """One layer in one call. activations: elements that it reads and writes. weights: elements, for any batch."""

    flops: int
    activations: int
    weights: int

    def times(self, batch: int) -> Layer:
        """The layer for a batch, if this is the layer for one item."""
        return Layer(self.flops * batch, self.activations * batch, self.weights)

    def seconds(self, item_bytes: int, tflops: float, tb_per_s: float) -> tuple[float, float]:
        """The least seconds for computing, and for moving."""
        moved = (self.activations + self.weights) * item_bytes
        return self.flops / (tflops * 1e12), moved / (tb_per_s * 1e12)


def total_flops(layers: Sequence[Layer]) -> int:
    """FLOPs of all layers."""
    return sum(layer.flops for layer in layers)


def roofline_ms(layers: Sequence[Layer], item_bytes: int, tflops: float, tb_per_s: float) -> float:
    """The memory roofline in milliseconds (see the module). item_bytes: bytes of one element."""
    return 1e3 * sum(max(layer.seconds(item_bytes, tflops, tb_per_s)) for layer in layers)


def item_bytes(precision: str) -> int:
    """Bytes of one weight or activation."""
    return 1 if precision == "fp8" else DTYPES[precision].itemsize


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
    """The layers of a ResNet, ResNeXt or Wide ResNet for one image of size x size pixels."""
    from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer

    from handlers.engines import networks

    with torch.device("meta"):
        network: Any = networks.build(config).train(False)
        example = torch.empty(1, config.num_channels, size, size)
    blocks: list[Any] = [
        one for one in network.modules() if isinstance(one, (ResNetBasicLayer, ResNetBottleNeckLayer))
    ]
    return count(network, example, [block.layer[-1].convolution for block in blocks])


def encoder_products(config: Any) -> dict[str, tuple[int, int]]:
    """(depth, columns) of the matrix products of one layer of a BERT-style encoder, by name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return {
        "qkv": (hidden, 3 * hidden),
        "attention output": (hidden, hidden),
        "feed-forward in": (hidden, inner),
        "feed-forward out": (inner, hidden),
    }


def encoder_layer(config: Any, lengths: Sequence[int]) -> dict[str, Layer]:
    """The parts of one layer of a BERT-style encoder, for packed sequences of these lengths, by name."""
    hidden, tokens, products = config.hidden_size, sum(lengths), encoder_products(config)

    def linear(name: str, residual: int = 0) -> Layer:
        depth, columns = products[name]
        return Layer(2 * tokens * depth * columns, tokens * (depth + columns + residual), depth * columns)

    squares = sum(length * length for length in lengths)
    return {
        "qkv": linear("qkv"),
        "attention": Layer(4 * squares * hidden, 4 * tokens * hidden, 0),
        "attention output": linear("attention output", hidden),
        "feed-forward in": linear("feed-forward in"),
        "feed-forward out": linear("feed-forward out", hidden),
    }


def encoder_layers(config: Any, lengths: Sequence[int]) -> list[Layer]:
    """All layers of the encoder for one call."""
    return [*encoder_layer(config, lengths).values()] * int(config.num_hidden_layers)
