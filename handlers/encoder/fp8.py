"""The fused encoder with its linear layers in fp8: e4m3 operands, all else as it was.

e4m3 keeps 3 bits of mantissa (Micikevicius et al., arXiv:2209.05433): every product is off by some percent, and
whether a model bears that is for the parity gate to say. (A GPU's tensor cores sum such products to some 13 bits, the
CPU here in fp32; both are far finer.) Scales are one a tensor: of weights their largest magnitude, of activations the
largest that calibration saw; what exceeds it later saturates. Post-norm encoders only.

T: tokens of all sequences together; H: hidden size; I: intermediate size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from handlers.encoder.fused import FusedEncoder, FusedLayer
from handlers.encoder.ops import ACTIVATIONS, Norm, Segments, TorchOperations

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
FILE = "fp8.json"
LINEARS = ("qkv", "out", "up", "down")


class Fp8Linear(nn.Module):
    """weight: (O, K) e4m3; it is to be multiplied by weight_scale, and its e4m3 inputs by input_scale."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, largest_input: float) -> None:
        super().__init__()
        self.weight_scale = max(float(weight.abs().max()), 1e-12) / LARGEST
        self.input_scale = max(largest_input, 1e-12) / LARGEST
        self.register_buffer("weight", quantise(weight.float(), self.weight_scale))
        self.register_buffer("bias", bias)


def quantise(x: torch.Tensor, scale: float) -> torch.Tensor:
    """x / scale in e4m3, saturated."""
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(E4M3)


class Fp8Torch(TorchOperations):
    """The calls of an fp8 layer in plain PyTorch: the reference, and what a CPU runs."""

    def quantise(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        """(T, K) -> (T, K) e4m3"""
        return quantise(x, scale)

    def linear8(self, x: torch.Tensor, layer: Fp8Linear, dtype: torch.dtype, biased: bool) -> torch.Tensor:
        """(T, K) e4m3 -> (T, O) in dtype"""
        product = F.linear(x.float(), layer.weight.float()) * (layer.weight_scale * layer.input_scale)
        return (product + layer.bias.float() if biased else product).to(dtype)

    def attention8(
        self, qkv: torch.Tensor, segments: Segments, heads: int, scale: float, out_scale: float
    ) -> torch.Tensor:
        """(T, 3H) -> (T, H) e4m3"""
        return quantise(self.attention(qkv, segments, heads, scale), out_scale)

    def linear_activation8(
        self, x: torch.Tensor, layer: Fp8Linear, activation: str, out_scale: float, dtype: torch.dtype
    ) -> torch.Tensor:
        """(T, K) e4m3 -> activation(linear8(x)), (T, O) e4m3; what lies between may be rounded to dtype"""
        return quantise(ACTIVATIONS[activation](self.linear8(x, layer, dtype, True)), out_scale)

    def add_norm8(
        self, x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor, norm: Norm, out_scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """norm(x + bias + residual), (T, H) twice: as it is, and in e4m3"""
        normed = self.norm(x + bias + residual, norm)
        return normed, quantise(normed, out_scale)


class Fp8Layer(nn.Module):
    """A FusedLayer with fp8 linear layers."""

    def __init__(self, layer: FusedLayer, largest: Mapping[str, float]) -> None:
        super().__init__()
        self.config = layer.config
        self.qkv = Fp8Linear(layer.qkv_weight.data, layer.qkv_bias.data, largest["qkv"])
        self.out = Fp8Linear(layer.out_weight.data, layer.out_bias.data, largest["out"])
        self.up = Fp8Linear(layer.up_weight.data, layer.up_bias.data, largest["up"])
        self.down = Fp8Linear(layer.down_weight.data, layer.down_bias.data, largest["down"])
        self.norms = nn.ModuleList(_norm(norm) for norm in (layer.attention_norm, layer.output_norm))

    def forward(
        self, hidden: torch.Tensor, hidden8: torch.Tensor, segments: Segments, ops: Fp8Torch, next_scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(T, H) and the same in e4m3 -> both of the layer's output."""
        dtype, config = hidden.dtype, self.config
        middle, last = (Norm(norm.weight, norm.bias, config.eps) for norm in self.norms)  # type: ignore[arg-type]
        qkv = ops.linear8(hidden8, self.qkv, dtype, True)  # (T, 3H)
        context = ops.attention8(qkv, segments, config.heads, config.scale, self.out.input_scale)  # (T, H) e4m3
        summed = ops.linear8(context, self.out, dtype, False)
        hidden, hidden8 = ops.add_norm8(summed, hidden, self.out.bias, middle, self.up.input_scale)
        inner = ops.linear_activation8(hidden8, self.up, config.activation, self.down.input_scale, dtype)  # (T, I)
        summed = ops.linear8(inner, self.down, dtype, False)
        return ops.add_norm8(summed, hidden, self.down.bias, last, next_scale)


def _norm(norm: Norm) -> nn.LayerNorm:
    """A module for its weights, which `ops` reads."""
    module = nn.LayerNorm(len(norm.weight), norm.eps, device="meta")
    module.weight, module.bias = (nn.Parameter(part.data, requires_grad=False) for part in (norm.weight, norm.bias))
    return module


class Fp8Encoder(nn.Module):
    """Called as a FusedEncoder is. `operations`: Fp8Torch, until an engine sets a faster one."""

    def __init__(self, encoder: FusedEncoder, largest: list[dict[str, float]]) -> None:
        """largest: of each layer, the largest magnitude that each of LINEARS reads. Raises ValueError for others."""
        super().__init__()
        if encoder.config.norm_first:
            raise ValueError("fp8 is for post-norm encoders, and this one has LayerNorm first")
        if len(largest) != encoder.config.layers or any(set(one) != set(LINEARS) for one in largest):
            raise ValueError(f"calibrated are {len(largest)} layers, and the encoder has {encoder.config.layers}")
        self.config = encoder.config
        self.operations: Fp8Torch = Fp8Torch()
        self.layers = nn.ModuleList(
            Fp8Layer(layer, one)  # type: ignore[arg-type]
            for layer, one in zip(encoder.layers, largest, strict=True)
        )

    @torch.no_grad()
    def forward(self, hidden: torch.Tensor, segments: Segments) -> torch.Tensor:
        """(T, H) embeddings -> (T, H)"""
        scales = [layer.qkv.input_scale for layer in self.layers]  # type: ignore[union-attr]
        hidden8 = self.operations.quantise(hidden, scales[0])  # type: ignore[arg-type]
        for layer, scale in zip(self.layers, [*scales[1:], 1.0], strict=True):
            hidden, hidden8 = layer(hidden, hidden8, segments, self.operations, scale)
        return hidden


class Calibration(TorchOperations):
    """TorchOperations that remember the largest magnitude that each linear layer has read, by its weight."""

    def __init__(self) -> None:
        self.largest: dict[int, float] = {}

    def note(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        seen = float(x.abs().max())
        self.largest[weight.data_ptr()] = max(seen, self.largest.get(weight.data_ptr(), 0.0))

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        self.note(x, weight)
        return super().linear(x, weight, bias)

    def linear_activation(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str
    ) -> torch.Tensor:
        self.note(x, weight)
        return super().linear_activation(x, weight, bias, activation)

    def linear_add(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        self.note(x, weight)
        return super().linear_add(x, weight, bias, residual)

    def of(self, encoder: FusedEncoder) -> list[dict[str, float]]:
        """What `Fp8Encoder` takes, for an encoder that has run with these operations."""
        return [
            {name: self.largest[getattr(layer, f"{name}_weight").data_ptr()] for name in LINEARS}
            for layer in encoder.layers
        ]


def write(largest: list[dict[str, float]], folder: Path) -> None:
    """Into the folder that an archive is made of."""
    (folder / FILE).write_text(json.dumps({"largest": largest}, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> list[dict[str, float]]:
    """Raises ValueError where the folder has none, or what is no calibration."""
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"the archive carries no {FILE}; package it with --precision fp8")
    try:
        largest = json.loads(path.read_text(encoding="utf-8"))["largest"]
        return [{name: float(one[name]) for name in LINEARS} for one in largest]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{FILE} is no calibration: {error!r}") from None
