"""A BERT-style encoder over packed tokens: four matrix products per layer, everything else fused into their calls.

It is for inference: no dropout in any mode, and no gradients. The operations are those of handlers.encoder.ops; the
encoder's attribute `ops` chooses the implementation.

Shapes: T tokens of all sequences together, H hidden size, I intermediate size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from handlers.encoder.ops import ACTIVATIONS, EncoderOps, Norm, Segments, TorchEncoderOps, launch_context


@dataclass(frozen=True)
class EncoderConfig:
    """The architecture of an encoder.

    Args:
        layers: number of layers.
        hidden: hidden size H, a multiple of `heads`.
        heads: number of attention heads.
        intermediate: size I of the feed-forward's inner layer.
        activation: a key of handlers.encoder.ops.ACTIVATIONS.
        eps: added to the variance in every LayerNorm.
        norm_first: True for pre-norm: LayerNorm before attention and feed-forward, not after the residual sums.
        final_norm: True if one more LayerNorm follows the last layer.

    Raises:
        ValueError: such an encoder cannot be built.
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
        """The factor of the attention scores: head size ** -0.5."""
        return float((self.hidden // self.heads) ** -0.5)


def layer_shapes(hidden: int, intermediate: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer's parameters by name. Weights are (outputs, inputs), as in torch.nn.Linear."""
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
    """Self-attention and feed-forward, each with its residual sum and LayerNorm.

    The parameters have the shapes of `layer_shapes`; their memory is not initialised.
    """

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
        """The LayerNorm after the attention's residual sum; before the attention if norm_first."""
        return Norm(self.attention_norm_weight, self.attention_norm_bias, self.config.eps)

    @property
    def output_norm(self) -> Norm:
        """The LayerNorm after the feed-forward's residual sum; before the feed-forward if norm_first."""
        return Norm(self.output_norm_weight, self.output_norm_bias, self.config.eps)

    def forward(self, hidden: torch.Tensor, segments: Segments, ops: EncoderOps) -> torch.Tensor:
        """Run the layer on packed hidden states, (T, H) -> (T, H). `hidden` may be overwritten."""
        if self.config.norm_first:
            context = self._attend(ops.norm(hidden, self.attention_norm), segments, ops)  # (T, H)
            hidden = ops.linear_add(context, self.out_weight, self.out_bias, hidden)
            inner = self._widen(ops.norm(hidden, self.output_norm), ops)  # (T, I)
            return ops.linear_add(inner, self.down_weight, self.down_bias, hidden)
        context = self._attend(hidden, segments, ops)  # (T, H)
        hidden = ops.linear_add_norm(context, self.out_weight, self.out_bias, hidden, self.attention_norm)
        inner = self._widen(hidden, ops)  # (T, I)
        return ops.linear_add_norm(inner, self.down_weight, self.down_bias, hidden, self.output_norm)

    def _attend(self, hidden: torch.Tensor, segments: Segments, ops: EncoderOps) -> torch.Tensor:
        qkv = ops.linear(hidden, self.qkv_weight, self.qkv_bias)  # (T, 3H)
        return ops.attention(qkv, segments, self.config.heads, self.config.scale)  # (T, H)

    def _widen(self, hidden: torch.Tensor, ops: EncoderOps) -> torch.Tensor:
        return ops.linear_activation(hidden, self.up_weight, self.up_bias, self.config.activation)  # (T, I)


class FusedEncoder(nn.Module):
    """A stack of FusedLayers over packed tokens.

    `train()` is accepted, for models pass it down, and changes nothing.

    Args:
        config: the architecture. Weights are not initialised: use `swap_encoder`, `encoder_from_fairseq` or
            `load_state_dict`.

    Attributes:
        ops: the implementation that `forward` uses. Plain PyTorch unless set; no part of the state_dict.
    """

    norm_weight: nn.Parameter | None
    norm_bias: nn.Parameter | None

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.ops: EncoderOps = TorchEncoderOps()
        self.layers = nn.ModuleList([FusedLayer(config) for _ in range(config.layers)])
        for name in ("norm_weight", "norm_bias"):
            self.register_parameter(name, _frozen((config.hidden,)) if config.final_norm else None)

    @property
    def final_norm(self) -> Norm | None:
        """The LayerNorm after the last layer, or None."""
        if self.norm_weight is None or self.norm_bias is None:
            return None
        return Norm(self.norm_weight, self.norm_bias, self.config.eps)

    @torch.no_grad()
    def forward(self, hidden: torch.Tensor, segments: Segments, ops: EncoderOps | None = None) -> torch.Tensor:
        """Run the encoder on packed tokens, without gradients.

        Args:
            hidden: (T, H), the embeddings, in the weights' dtype. May be overwritten.
            segments: where each sequence begins and ends.
            ops: the implementation. None takes `self.ops`.

        Returns:
            (T, H), the hidden states of the last layer. Rows of no sequence are undefined.
        """
        ops = ops or self.ops
        with launch_context(hidden, ops):
            for layer in self.layers:
                hidden = layer(hidden, segments, ops)
            return hidden if self.final_norm is None else ops.norm(hidden, self.final_norm)


def _frozen(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape), requires_grad=False)
