"""Programmatic dependent launch (CUDA programming guide, same title; Hopper and newer).

A kernel that takes `early` is brought up while the one before it ends, and waits for its results in `gdc_wait`.
It touches no memory before, so what holds for kernels that follow one another in a stream holds here as well.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from triton.language.extra import cuda as on_cuda


@functools.cache
def launch_early(device: torch.device) -> bool:
    """Whether this device and this Triton know programmatic dependent launch."""
    on_gpu = device.type == "cuda" and hasattr(on_cuda, "gdc_wait")
    return on_gpu and torch.cuda.get_device_capability(device) >= (9, 0)


def early(like: torch.Tensor) -> dict[str, Any]:
    """Launch options for kernels that take `early`."""
    return {"early": True, "launch_pdl": True} if launch_early(like.device) else {"early": False}
