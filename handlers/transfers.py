"""Copies between host and GPU that do not wait for the work that a GPU still has to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class Download:
    """Tensors on their way to the host. The copies are launched at once; `arrays` waits for them.

    On a CPU nothing is copied, and the arrays share the tensors' memory.

    Args:
        tensors: one or more, all on one device.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._done = None
        self._tensors = tensors
        if tensors[0].is_cuda:
            self._tensors = tuple(map(_copy, tensors))
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(tensors[0].device))

    def arrays(self) -> list[NDArray[Any]]:
        """Return the values, one array per tensor, with its shape and dtype. Waits for earlier work only."""
        if self._done is None:
            return [tensor.numpy() for tensor in self._tensors]
        self._done.synchronize()
        # Answers may be kept for long, and pinned memory is scarce.
        return [np.array(tensor.numpy()) for tensor in self._tensors]


def upload(values: torch.Tensor | Sequence[float], device: torch.device) -> torch.Tensor:
    """Return values on a device.

    A copy from ordinary memory would wait for what the GPU has still to do, so it goes through pinned memory.

    Args:
        values: a tensor on any device, or numbers.
    """
    tensor = values if isinstance(values, torch.Tensor) else torch.tensor(values)
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return pinned memory that the tensor is being copied to. PyTorch reuses it only after the copy is done."""
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
