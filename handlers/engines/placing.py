"""A network from the CPU to its device."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def place(network: M, device: torch.device, dtype: torch.dtype) -> M:
    """Move a network to its device, cast its floating-point weights there, and return it.

    `network.to(device, dtype)` gives the same bits, but casts on the CPU: PyTorch converts types before it copies to
    a GPU (aten/src/ATen/native/cuda/Copy.cu), and a worker on a GPU has one CPU thread. Modules go one by one,
    children first, so that no more than one of them is on the GPU in its old type.
    """
    for module in reversed(list(network.modules())):
        module.to(device)
        module.to(dtype)
    return network
