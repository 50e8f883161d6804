"""EncoderOps on an NVIDIA GPU: cuBLAS, and Triton's kernels where those were faster on an H200."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from handlers.encoder.ops import Norm, Positions, Segments, TorchEncoderOps
from handlers.kernels import encoder, linear

# Crossover points measured on an H200; above them cuBLAS is faster.
FEW_ROWS = 128  # Triton's matrix products, which overlap with the end of the kernel before them
SPLIT_ROWS = 256  # the same with an activation, or split along K (split-K) and followed by LayerNorm
PROGRAMS = 256  # most programs of a split-K product: two for a multiprocessor


class TritonEncoderOps(TorchEncoderOps):
    """EncoderOps in fp16 or bf16. `attention` needs `Segments.tiles`, which `prepare_packed` adds.

    Args:
        device: the GPU.
        programs: programs of a persistent kernel. None takes the device's number of multiprocessors.

    Raises ValueError if an operation gets activations and weights of two types.
    """

    follows_autocast = False

    def __init__(self, device: torch.device, programs: int | None = None) -> None:
        self.programs = programs or torch.cuda.get_device_properties(device).multi_processor_count
        self.fused_activation = linear.has_tensor_memory_access(device)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        require_one_dtype("linear", x, weight)
        if len(x) <= FEW_ROWS and x.shape[1] % 64 == 0:
            return linear.linear(x, weight, bias)
        return F.linear(x, weight, bias)

    def linear_activation(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str
    ) -> torch.Tensor:
        require_one_dtype("linear_activation", x, weight)
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
        require_one_dtype("linear_add_norm", x, weight, residual, norm.weight)
        if len(x) <= SPLIT_ROWS and x.shape[1] % 64 == 0:
            parts = linear.split_linear(x, weight, splits(len(x), *weight.shape))  # (P, T, O)
        else:
            parts = F.linear(x, weight).unsqueeze(0)  # (1, T, O)
        return encoder.add_norm(parts, residual, bias, norm.weight, norm.bias, norm.eps)

    def norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        require_one_dtype("norm", x, norm.weight)
        return encoder.add_norm(x.unsqueeze(0), None, None, norm.weight, norm.bias, norm.eps)

    def attention(self, qkv: torch.Tensor, segments: Segments, heads: int, scale: float) -> torch.Tensor:
        return encoder.attention(qkv, tiles_of(segments), heads, scale)

    def prepare_packed(
        self, ids: torch.Tensor, segments: Segments, positions: Positions
    ) -> tuple[Segments, torch.Tensor]:
        offset, skipped = positions.offset, positions.skipped
        tiles, position_ids = encoder.tiles_and_positions(segments.cu_seqlens, ids, offset, skipped)
        return dataclasses.replace(segments, tiles=tiles), position_ids

    def embed_norm(self, tables: tuple[torch.Tensor, ...], ids: tuple[torch.Tensor, ...], norm: Norm) -> torch.Tensor:
        require_one_dtype("embed_norm", *tables, norm.weight)
        return encoder.embed_norm(tables, ids, norm.weight, norm.bias, norm.eps)


def require_one_dtype(operation: str, *tensors: torch.Tensor) -> None:
    """Raise ValueError if the tensors are of several types: Triton's kernels cast nothing, even under autocast."""
    dtype = tensors[0].dtype
    if all(tensor.dtype == dtype for tensor in tensors):
        return
    found = ", ".join(dict.fromkeys(str(tensor.dtype) for tensor in tensors))
    raise ValueError(
        f"{operation}: tensors of several types came, {found}; wanted: activations and weights of one type, for "
        "Triton's kernels do not cast. Cast the model with model.to(dtype), or use TorchEncoderOps under autocast"
    )


def tiles_of(segments: Segments) -> torch.Tensor:
    """Return the work list of the attention kernel, (M, 3) int32. Raises ValueError without one."""
    if segments.tiles is None:
        raise ValueError("attention: segments without tiles came; wanted: those that prepare_packed returned")
    return segments.tiles


def splits(rows: int, columns: int, depth: int) -> int:
    """Return the number of splits along K that fills the GPU with 64 x 64 blocks.

    Args:
        rows: T of the product (T, K) x (O, K).
        columns: O.
        depth: K. Each split is a multiple of 64 deep.
    """
    blocks, least = -(-rows // 64) * -(-columns // 64), 256 if rows <= FEW_ROWS else 512
    most = max(1, min(PROGRAMS // blocks, depth // least))
    return next(count for count in range(most, 0, -1) if depth % (count * 64) == 0)
