"""Crops and normalised images -> the network's input, one tensor on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from handlers.images.preprocess import Preprocess
from handlers.transfers import upload

DTYPES = {np.uint8: torch.uint8, np.float16: torch.float16, np.float32: torch.float32}


class DeviceCrop(NamedTuple):
    """A crop that lies on the GPU already.

    batch: (N, height, width, 3), normalised, in the network's dtype.
    row: index of the crop in `batch`.
    """

    batch: torch.Tensor
    row: int


def scale_and_shift(preprocess: Preprocess, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rescaling and normalising as one step: a value v of 0..255 becomes v * scale - shift.

    Returns:
        scale, shift: (3,) fp32 each, on `device`.
    """
    std = torch.tensor(preprocess.std, dtype=torch.float32, device=device)
    mean = torch.tensor(preprocess.mean, dtype=torch.float32, device=device)
    return 1 / (255 * std), mean / std


class Batcher:
    """Turns crops and normalised images into one batch.

    Args:
        preprocess: the archive's settings.
        device: of the network.
        dtype: of the network's input.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.device, self.dtype = preprocess.shape, device, dtype
        self.reverses = preprocess.channel_order == "bgr"
        self.scale, self.shift = scale_and_shift(preprocess, device)

    def __call__(self, inputs: Sequence[Any]) -> torch.Tensor:
        """Upload and normalise what is not on the device yet. Crops that lie there in a row are not copied.

        Args:
            inputs: one or more, each a Crop, a Normalised or a DeviceCrop.

        Returns:
            (N, 3, height, width), channels_last, in the network's dtype.
        """
        found = _consecutive_rows(inputs)
        if found is not None:
            return found.permute(0, 3, 1, 2)
        batch = torch.empty((len(inputs), *self.shape, 3), dtype=self.dtype, device=self.device)
        on_device, crops, normalised = _indices_by_kind(inputs)
        if crops:
            _put(batch, crops, self._normalise(self._upload([inputs[index] for index in crops])))
        for dtype in (np.float16, np.float32):
            if indices := [index for index in normalised if inputs[index].dtype == dtype]:
                _put(batch, indices, self._upload([inputs[index] for index in indices]).permute(0, 2, 3, 1))
        if on_device:
            _put(batch, on_device, torch.stack([inputs[index].batch[inputs[index].row] for index in on_device]))
        return batch.permute(0, 3, 1, 2)

    def _normalise(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, height, width, 3) uint8, RGB -> the same, normalised, fp32, in the channel order."""
        crops = crops.flip(3) if self.reverses else crops
        return crops.float().mul_(self.scale).sub_(self.shift)

    def _upload(self, arrays: Sequence[Any]) -> torch.Tensor:
        """Arrays of one shape and type as one tensor on the device: copied once on the host, into pinned memory."""
        shape = (len(arrays), *arrays[0].shape)
        pinned = self.device.type == "cuda"
        staged = torch.empty(shape, dtype=DTYPES[arrays[0].dtype.type], pin_memory=pinned)
        np.stack(arrays, out=staged.numpy())
        return staged.to(self.device, non_blocking=True)


def _consecutive_rows(inputs: Sequence[Any]) -> torch.Tensor | None:
    """(N, height, width, 3): crops that lie one behind the other in one device batch; None for anything else."""
    first = inputs[0]
    if not isinstance(first, DeviceCrop):
        return None
    for offset, item in enumerate(inputs):
        if not isinstance(item, DeviceCrop) or item.batch is not first.batch or item.row != first.row + offset:
            return None
    return first.batch[first.row : first.row + len(inputs)]


def _indices_by_kind(inputs: Sequence[Any]) -> tuple[list[int], list[int], list[int]]:
    """Indices of crops on the device, of crops on the host, and of normalised images."""
    indices: tuple[list[int], list[int], list[int]] = ([], [], [])
    for index, item in enumerate(inputs):
        indices[0 if isinstance(item, DeviceCrop) else 1 if item.dtype == np.uint8 else 2].append(index)
    return indices


def _put(batch: torch.Tensor, indices: Sequence[int], values: torch.Tensor) -> None:
    """Write rows of the batch, converted to its dtype.

    Args:
        batch: (N, height, width, 3).
        indices: the rows to write.
        values: (len(indices), height, width, 3), of any dtype.
    """
    if len(indices) == len(batch):
        batch.copy_(values)
    else:
        batch[upload(indices, batch.device)] = values.to(batch.dtype)
