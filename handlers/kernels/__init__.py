"""Triton kernels: tensors in, tensors out. Importing one needs Triton, which torch for CUDA on Linux brings."""

from __future__ import annotations

import importlib.util

import torch


def objection(device: torch.device) -> str | None:
    """Why the encoder's kernels do not run on this GPU, or None."""
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 or newer"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, which torch for CUDA on Linux brings"
    return None
