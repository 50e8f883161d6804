"""The operations of an fp8 layer on an NVIDIA GPU: cuBLASLt's fp8 products, and Triton's kernels around them."""

from __future__ import annotations

import torch

from handlers.encoder.fp8 import Fp8Linear, Fp8TorchOps
from handlers.encoder.ops import Norm, Segments
from handlers.encoder.triton_ops import TritonEncoderOps, tiles_of
from handlers.kernels import encoder, linear


class Fp8TritonOps(TritonEncoderOps, Fp8TorchOps):
    """Fp8TorchOps on Hopper and newer. `attention8` needs `Segments.tiles`, which `prepare_packed` adds."""

    def __init__(self, device: torch.device, programs: int | None = None) -> None:
        super().__init__(device, programs)
        self.scales: dict[tuple[float, torch.device], torch.Tensor] = {}

    def scale(self, value: float, device: torch.device) -> torch.Tensor:
        """Return a scale as a tensor, () fp32, made once for each value: torch._scaled_mm takes no number."""
        if (value, device) not in self.scales:
            self.scales[value, device] = torch.tensor(value, dtype=torch.float32, device=device)
        return self.scales[value, device]

    def quantise(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return linear.activate8(x, "", scale)

    def linear8(self, x: torch.Tensor, layer: Fp8Linear, dtype: torch.dtype, biased: bool) -> torch.Tensor:
        product: torch.Tensor = torch._scaled_mm(
            x,
            layer.weight.t(),
            scale_a=self.scale(layer.input_scale, x.device),
            scale_b=self.scale(layer.weight_scale, x.device),
            bias=layer.bias if biased else None,
            out_dtype=dtype,
            use_fast_accum=True,
        )
        return product

    def attention8(
        self, qkv: torch.Tensor, segments: Segments, heads: int, scale: float, out_scale: float
    ) -> torch.Tensor:
        return encoder.attention(qkv, tiles_of(segments), heads, scale, out_scale)

    def linear_activation8(
        self, x: torch.Tensor, layer: Fp8Linear, activation: str, out_scale: float, dtype: torch.dtype
    ) -> torch.Tensor:
        if activation not in linear.ACTIVATIONS:
            return super().linear_activation8(x, layer, activation, out_scale, dtype)
        aligned = x.shape[1] % 16 == 0 and len(layer.weight) % 16 == 0
        if self.fused_activation and aligned:
            scale = layer.input_scale * layer.weight_scale
            return linear.linear_activation8(x, layer.weight, layer.bias, activation, scale, out_scale, self.programs)
        return linear.activate8(self.linear8(x, layer, dtype, True), activation, out_scale)

    def add_norm8(
        self, x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor, norm: Norm, out_scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return encoder.add_norm8(x.unsqueeze(0), residual, bias, norm.weight, norm.bias, norm.eps, out_scale)
