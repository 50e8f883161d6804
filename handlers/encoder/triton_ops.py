"""The encoder's operations on an NVIDIA GPU: cuBLAS, and Triton's kernels where those measured faster on an H200."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from handlers.encoder.ops import Norm, Positions, Segments, TorchOperations
from handlers.kernels import encoder, linear

FEW_ROWS = 128  # up to which Triton's matrix products, started early, are faster than cuBLAS's
SPLIT_ROWS = 256  # up to which they are with an activation, or split along the depth with LayerNorm behind them
PROGRAMS = 256  # that a split product is cut into at most: two a multiprocessor


class TritonOperations(TorchOperations):
    """fp16 and bf16. `Segments.tiles` has to be there. programs: None for the device's multiprocessors."""

    def __init__(self, device: torch.device, programs: int | None = None) -> None:
        self.programs = programs or torch.cuda.get_device_properties(device).multi_processor_count
        self.fused_activation = linear.has_tensor_memory_access(device)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if len(x) <= FEW_ROWS and x.shape[1] % 64 == 0:
            return linear.linear(x, weight, bias)
        return F.linear(x, weight, bias)

    def linear_activation(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str
    ) -> torch.Tensor:
        if activation not in linear.ACTIVATIONS:
            return super().linear_activation(x, weight, bias, activation)
        if len(x) <= SPLIT_ROWS and x.shape[1] % 64 == 0:
            return linear.linear(x, weight, bias, activation)
        aligned = x.shape[1] % 8 == 0 and len(weight) % 8 == 0
        if self.fused_activation and aligned and linear.persistent_is_faster(len(x), len(weight), self.programs):
            return linear.linear_activation(x, weight, bias, activation, self.programs)
        return linear.activate(F.linear(x, weight, bias), activation)

    def linear_add_norm(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, norm: Norm
    ) -> torch.Tensor:
        if len(x) <= SPLIT_ROWS and x.shape[1] % 64 == 0:
            parts = linear.split_linear(x, weight, splits(len(x), *weight.shape))  # (P, T, O)
        else:
            parts = F.linear(x, weight).unsqueeze(0)  # (1, T, O)
        return encoder.add_norm(parts, residual, bias, norm.weight, norm.bias, norm.eps)

    def norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        return encoder.add_norm(x.unsqueeze(0), None, None, norm.weight, norm.bias, norm.eps)

    def attention(self, qkv: torch.Tensor, segments: Segments, heads: int, scale: float) -> torch.Tensor:
        return encoder.attention(qkv, tiles_of(segments), heads, scale)

    def lay_out(self, ids: torch.Tensor, segments: Segments, positions: Positions) -> tuple[Segments, torch.Tensor]:
        tiles, places = encoder.tiles_and_positions(segments.cu_seqlens, ids, positions.offset, positions.skipped)
        return dataclasses.replace(segments, tiles=tiles), places

    def embed_norm(self, tables: tuple[torch.Tensor, ...], ids: tuple[torch.Tensor, ...], norm: Norm) -> torch.Tensor:
        return encoder.embed_norm(tables, ids, norm.weight, norm.bias, norm.eps)


def tiles_of(segments: Segments) -> torch.Tensor:
    """(M, 3) int32, what `lay_out` has put there. Raises ValueError where it has not."""
    if segments.tiles is None:
        raise ValueError(
            "attention: segments without tiles came; wanted: those of kernels.encoder.tiles_and_positions"
        )
    return segments.tiles


def splits(rows: int, columns: int, depth: int) -> int:
    """How many parts along the depth fill the GPU with 64 x 64 blocks; each a multiple of 64 deep."""
    blocks, least = -(-rows // 64) * -(-columns // 64), 256 if rows <= FEW_ROWS else 512
    most = max(1, min(PROGRAMS // blocks, depth // least))
    return next(count for count in range(most, 0, -1) if depth % (count * 64) == 0)
