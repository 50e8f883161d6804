"""Programmatic dependent launch, PDL (CUDA programming guide, same title; Hopper and newer).

A kernel launched with PDL starts while the kernel before it ends, and waits for that kernel's results in `gdc_wait`.
It touches no memory before that, so kernels of one stream still see each other's results in order.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from triton.language.extra import cuda as on_cuda


@functools.cache
def has_pdl(device: torch.device) -> bool:
    """Whether this device and this Triton support programmatic dependent launch."""
    on_gpu = device.type == "cuda" and hasattr(on_cuda, "gdc_wait")
    return on_gpu and torch.cuda.get_device_capability(device) >= (9, 0)


def pdl_options(like: torch.Tensor) -> dict[str, Any]:
    """Return launch options for a kernel with the parameter `pdl`, on the device of `like`."""
    return {"pdl": True, "launch_pdl": True} if has_pdl(like.device) else {"pdl": False}
