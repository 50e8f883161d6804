"""A BERT-style encoder over packed tokens: four multiplications a layer, everything else fused into their calls.

For inference: no dropout in any mode, and no gradients. The calls are those of handlers.encoder.ops; which
implementation answers them is the encoder's attribute `operations`. T: tokens of all sequences together; H: hidden
size; I: intermediate size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from handlers.encoder.ops import ACTIVATIONS, Norm, Operations, Segments, TorchOperations


@dataclass(frozen=True)
class EncoderConfig:
    """The architecture of an encoder.

    activation: a key of ops.ACTIVATIONS. eps: of every LayerNorm. norm_first: LayerNorm before attention and
    feed-forward (pre-norm) in place of behind their residual sums. final_norm: one more LayerNorm at the end.
    Raises ValueError for what cannot be built.
    """

    layers: int
    hidden: int
    heads: int
    intermediate: int
    activation: str
    eps: float
    norm_first: bool = False
    final_norm: bool = False

    def __post_init__(self) -> None:
        sizes = (self.layers, self.hidden, self.heads, self.intermediate)
        if min(sizes) < 1 or self.hidden % self.heads:
            raise ValueError(
                f"{self.layers} layers, hidden size {self.hidden}, {self.heads} heads, intermediate size "
                f"{self.intermediate}; wanted: all positive, and heads that divide the hidden size"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"the activation is {self.activation!r}; fused are: {', '.join(ACTIVATIONS)}")

    @property
    def scale(self) -> float:
        """Of the attention scores: head dimension ** -0.5"""
        return float((self.hidden // self.heads) ** -0.5)


def layer_shapes(hidden: int, intermediate: int) -> dict[str, tuple[int, ...]]:
    """A layer's parameters; weights are (out, in), as torch.nn.Linear has them."""
    return {
        "qkv_weight": (3 * hidden, hidden),
        "qkv_bias": (3 * hidden,),
        "out_weight": (hidden, hidden),
        "out_bias": (hidden,),
        "attention_norm_weight": (hidden,),
        "attention_norm_bias": (hidden,),
        "up_weight": (intermediate, hidden),
        "up_bias": (intermediate,),
        "down_weight": (hidden, intermediate),
        "down_bias": (hidden,),
        "output_norm_weight": (hidden,),
        "output_norm_bias": (hidden,),
    }


class FusedLayer(nn.Module):
    """Self-attention and feed-forward, each with residual and LayerNorm. Shapes: layer_shapes; unset until loaded."""

    qkv_weight: nn.Parameter
    qkv_bias: nn.Parameter
    out_weight: nn.Parameter
    out_bias: nn.Parameter
    attention_norm_weight: nn.Parameter
    attention_norm_bias: nn.Parameter
    up_weight: nn.Parameter
    up_bias: nn.Parameter
    down_weight: nn.Parameter
    down_bias: nn.Parameter
    output_norm_weight: nn.Parameter
    output_norm_bias: nn.Parameter

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        for name, shape in layer_shapes(config.hidden, config.intermediate).items():
            self.register_parameter(name, _frozen(shape))

    @property
    def attention_norm(self) -> Norm:
        """Behind the attention's residual sum; with norm_first before the attention."""
        return Norm(self.attention_norm_weight, self.attention_norm_bias, self.config.eps)

    @property
    def output_norm(self) -> Norm:
        """Behind the feed-forward's residual sum; with norm_first before the feed-forward."""
        return Norm(self.output_norm_weight, self.output_norm_bias, self.config.eps)

    def forward(self, hidden: torch.Tensor, segments: Segments, ops: Operations) -> torch.Tensor:
        """(T, H) -> (T, H). `hidden` may be overwritten."""
        if self.config.norm_first:
            context = self._attend(ops.norm(hidden, self.attention_norm), segments, ops)
            hidden = ops.linear_add(context, self.out_weight, self.out_bias, hidden)
            inner = self._widen(ops.norm(hidden, self.output_norm), ops)
            return ops.linear_add(inner, self.down_weight, self.down_bias, hidden)
        context = self._attend(hidden, segments, ops)
        hidden = ops.linear_add_norm(context, self.out_weight, self.out_bias, hidden, self.attention_norm)
        inner = self._widen(hidden, ops)
        return ops.linear_add_norm(inner, self.down_weight, self.down_bias, hidden, self.output_norm)

    def _attend(self, hidden: torch.Tensor, segments: Segments, ops: Operations) -> torch.Tensor:
        qkv = ops.linear(hidden, self.qkv_weight, self.qkv_bias)  # (T, 3H)
        return ops.attention(qkv, segments, self.config.heads, self.config.scale)  # (T, H)

    def _widen(self, hidden: torch.Tensor, ops: Operations) -> torch.Tensor:
        return ops.linear_activation(hidden, self.up_weight, self.up_bias, self.config.activation)  # (T, I)


class FusedEncoder(nn.Module):
    """A stack of FusedLayers. `train()` is accepted, since models pass it down, and changes nothing.

    operations: what computes; plain PyTorch, until an engine sets a faster one. Not a part of the state_dict.
    """

    norm_weight: nn.Parameter | None
    norm_bias: nn.Parameter | None

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.operations: Operations = TorchOperations()
        self.layers = nn.ModuleList([FusedLayer(config) for _ in range(config.layers)])
        for name in ("norm_weight", "norm_bias"):
            self.register_parameter(name, _frozen((config.hidden,)) if config.final_norm else None)

    @property
    def final_norm(self) -> Norm | None:
        """Behind the last layer, where the config has it."""
        if self.norm_weight is None or self.norm_bias is None:
            return None
        return Norm(self.norm_weight, self.norm_bias, self.config.eps)

    @torch.no_grad()
    def forward(self, hidden: torch.Tensor, segments: Segments, ops: Operations | None = None) -> torch.Tensor:
        """(T, H) embeddings -> (T, H). `hidden` may be overwritten. ops: None takes self.operations."""
        ops = ops or self.operations
        for layer in self.layers:
            hidden = layer(hidden, segments, ops)
        return hidden if self.final_norm is None else ops.norm(hidden, self.final_norm)


def _frozen(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape), requires_grad=False)
