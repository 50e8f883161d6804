"""The fused encoder with its linear layers in fp8: e4m3 operands, everything else as it was.

e4m3 has 3 bits of mantissa (Micikevicius et al., arXiv:2209.05433), so every product is off by some percent. The
parity gate decides whether a model stands that. (A GPU's tensor cores sum such products to about 13 bits, the CPU
here in fp32; both are far finer.) There is one scale for each tensor: a weight's comes from its largest magnitude, an
activation's from the largest that calibration saw. Larger values saturate later. Post-norm encoders only.

Shapes: T tokens of all sequences together, H hidden size, I intermediate size, K inputs and O outputs of a linear
layer. amax: the largest magnitude of a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from handlers.encoder.errors import UnsupportedError
from handlers.encoder.fused import FusedEncoder, FusedLayer
from handlers.encoder.ops import ACTIVATIONS, Norm, Segments, TorchEncoderOps, launch_context

E4M3 = torch.float8_e4m3fn
E4M3_MAX = torch.finfo(E4M3).max  # 448
FILE = "fp8.json"
LINEARS = ("qkv", "out", "up", "down")


class Fp8Linear(nn.Module):
    """The weight of a linear layer in e4m3, with its scale and the scale of its e4m3 inputs.

    The value of an e4m3 tensor is the tensor times its scale.

    Args:
        weight: (O, K).
        bias: (O,), kept in its type.
        input_amax: the largest magnitude of the inputs.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, input_amax: float) -> None:
        super().__init__()
        self.weight_scale = max(float(weight.abs().max()), 1e-12) / E4M3_MAX
        self.input_scale = max(input_amax, 1e-12) / E4M3_MAX
        self.register_buffer("weight", quantise(weight.float(), self.weight_scale))
        self.register_buffer("bias", bias)


def quantise(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Return x / scale in e4m3, saturated."""
    return (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


class Fp8TorchOps(TorchEncoderOps):
    """The operations of an fp8 layer in plain PyTorch: the reference, and what a CPU runs."""

    def quantise(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        """Return x / scale, saturated: (T, K) -> (T, K) e4m3."""
        return quantise(x, scale)

    def linear8(self, x: torch.Tensor, layer: Fp8Linear, dtype: torch.dtype, biased: bool) -> torch.Tensor:
        """Return the product, with the bias if `biased`: (T, K) e4m3 -> (T, O) in `dtype`."""
        product = F.linear(x.float(), layer.weight.float()) * (layer.weight_scale * layer.input_scale)  # (T, O)
        return (product + layer.bias.float() if biased else product).to(dtype)

    def attention8(
        self, qkv: torch.Tensor, segments: Segments, heads: int, scale: float, out_scale: float
    ) -> torch.Tensor:
        """Return the attention divided by out_scale: (T, 3H) -> (T, H) e4m3."""
        return quantise(self.attention(qkv, segments, heads, scale), out_scale)

    def linear_activation8(
        self, x: torch.Tensor, layer: Fp8Linear, activation: str, out_scale: float, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return activation(linear8(x)) divided by out_scale: (T, K) e4m3 -> (T, O) e4m3.

        The product may be rounded to `dtype` before the activation.
        """
        return quantise(ACTIVATIONS[activation](self.linear8(x, layer, dtype, True)), out_scale)

    def add_norm8(
        self, x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor, norm: Norm, out_scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return norm(x + bias + residual), (T, H), and the same divided by out_scale in e4m3."""
        normed = self.norm(x + bias + residual, norm)
        return normed, quantise(normed, out_scale)


class Fp8Layer(nn.Module):
    """A FusedLayer with fp8 linear layers.

    Args:
        layer: the layer to quantise.
        amax: the largest input of each of LINEARS.
    """

    def __init__(self, layer: FusedLayer, amax: Mapping[str, float]) -> None:
        super().__init__()
        self.config = layer.config
        self.qkv = Fp8Linear(layer.qkv_weight.data, layer.qkv_bias.data, amax["qkv"])
        self.out = Fp8Linear(layer.out_weight.data, layer.out_bias.data, amax["out"])
        self.up = Fp8Linear(layer.up_weight.data, layer.up_bias.data, amax["up"])
        self.down = Fp8Linear(layer.down_weight.data, layer.down_bias.data, amax["down"])
        self.norms = nn.ModuleList(_norm(norm) for norm in (layer.attention_norm, layer.output_norm))

    def forward(
        self, hidden: torch.Tensor, hidden8: torch.Tensor, segments: Segments, ops: Fp8TorchOps, next_scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the layer.

        Args:
            hidden: (T, H).
            hidden8: the same in e4m3, divided by this layer's qkv.input_scale.
            segments: where each sequence begins and ends.
            ops: what computes.
            next_scale: the input scale of the next layer.

        Returns:
            The layer's output, (T, H), and the same divided by next_scale in e4m3.
        """
        dtype, config = hidden.dtype, self.config
        middle, last = (Norm(norm.weight, norm.bias, config.eps) for norm in self.norms)  # type: ignore[arg-type]
        qkv = ops.linear8(hidden8, self.qkv, dtype, True)  # (T, 3H)
        context = ops.attention8(qkv, segments, config.heads, config.scale, self.out.input_scale)  # (T, H) e4m3
        summed = ops.linear8(context, self.out, dtype, False)  # (T, H)
        hidden, hidden8 = ops.add_norm8(summed, hidden, self.out.bias, middle, self.up.input_scale)
        inner = ops.linear_activation8(hidden8, self.up, config.activation, self.down.input_scale, dtype)  # (T, I)
        summed = ops.linear8(inner, self.down, dtype, False)  # (T, H)
        return ops.add_norm8(summed, hidden, self.down.bias, last, next_scale)


def _norm(norm: Norm) -> nn.LayerNorm:
    """Return a module that holds the weights, so that they move with the layer; `ops` compute."""
    module = nn.LayerNorm(len(norm.weight), norm.eps, device="meta")
    module.weight, module.bias = (nn.Parameter(part.data, requires_grad=False) for part in (norm.weight, norm.bias))
    return module


class Fp8Encoder(nn.Module):
    """A FusedEncoder with fp8 linear layers, called in the same way.

    Args:
        encoder: the encoder to quantise, in the dtype and on the device that it will run in.
        amax: for each layer, the largest input of each of LINEARS.

    Attributes:
        ops: the implementation. Plain PyTorch unless set.

    Raises:
        UnsupportedError: the encoder is pre-norm.
        ValueError: `amax` is of an encoder with other layers.
    """

    def __init__(self, encoder: FusedEncoder, amax: list[dict[str, float]]) -> None:
        super().__init__()
        if encoder.config.norm_first:
            raise UnsupportedError("fp8 is for post-norm encoders, and this one has LayerNorm first")
        if len(amax) != encoder.config.layers or any(set(one) != set(LINEARS) for one in amax):
            raise ValueError(f"calibrated are {len(amax)} layers, and the encoder has {encoder.config.layers}")
        self.config = encoder.config
        self.ops: Fp8TorchOps = Fp8TorchOps()
        self.layers = nn.ModuleList(
            Fp8Layer(layer, one)  # type: ignore[arg-type]
            for layer, one in zip(encoder.layers, amax, strict=True)
        )

    @torch.no_grad()
    def forward(self, hidden: torch.Tensor, segments: Segments) -> torch.Tensor:
        """Run the encoder on packed tokens: embeddings (T, H) -> hidden states of the last layer (T, H)."""
        scales = [layer.qkv.input_scale for layer in self.layers]  # type: ignore[union-attr]
        with launch_context(hidden, self.ops):
            hidden8 = self.ops.quantise(hidden, scales[0])  # type: ignore[arg-type]
            for layer, scale in zip(self.layers, [*scales[1:], 1.0], strict=True):
                hidden, hidden8 = layer(hidden, hidden8, segments, self.ops, scale)
        return hidden


class Calibration(TorchEncoderOps):
    """TorchEncoderOps that record the largest magnitude that each linear layer reads."""

    def __init__(self) -> None:
        self.amax: dict[int, float] = {}  # by the address of the layer's weight

    def record(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        seen = float(x.abs().max())
        self.amax[weight.data_ptr()] = max(seen, self.amax.get(weight.data_ptr(), 0.0))

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        self.record(x, weight)
        return super().linear(x, weight, bias)

    def linear_activation(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str
    ) -> torch.Tensor:
        self.record(x, weight)
        return super().linear_activation(x, weight, bias, activation)

    def linear_add(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        self.record(x, weight)
        return super().linear_add(x, weight, bias, residual)

    def of(self, encoder: FusedEncoder) -> list[dict[str, float]]:
        """Return what `Fp8Encoder` takes, for an encoder that has run with these operations."""
        return [
            {name: self.amax[getattr(layer, f"{name}_weight").data_ptr()] for name in LINEARS}
            for layer in encoder.layers
        ]


def write(amax: list[dict[str, float]], folder: Path) -> None:
    """Write a calibration into the folder that an archive is made of."""
    (folder / FILE).write_text(json.dumps({"largest": amax}, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> list[dict[str, float]]:
    """Read a calibration.

    Raises:
        ValueError: the folder has none, or the file is no calibration.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"the archive carries no {FILE}; package it with --precision fp8")
    try:
        amax = json.loads(path.read_text(encoding="utf-8"))["largest"]
        return [{name: float(one[name]) for name in LINEARS} for one in amax]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{FILE} is no calibration: {error!r}") from None
