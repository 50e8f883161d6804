"""The input of an image network: one tensor, or tensors by the names of the network's parameters.

Most networks take pixels, (N, 3, H, W). Siglip 2 (NaFlex) takes patches, their mask and the grid's shape. ImageGPT
takes indices of colours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

ImageInputs = torch.Tensor | Mapping[str, torch.Tensor]


def call(network: Any, inputs: ImageInputs) -> Any:
    """Run a network of transformers on its input."""
    return network(**inputs) if isinstance(inputs, Mapping) else network(inputs)


def rows(inputs: ImageInputs, indices: torch.Tensor) -> ImageInputs:
    """The input of the images at these indices.

    Args:
        inputs: of N images.
        indices: (M,) int64.

    Returns:
        The same names and shapes, of M images.
    """
    if isinstance(inputs, Mapping):
        return {name: value[indices] for name, value in inputs.items()}
    return inputs[indices]


def placed(inputs: ImageInputs, device: torch.device, dtype: torch.dtype) -> ImageInputs:
    """The input on a device: floating-point tensors in `dtype`, pixels in channels_last, integers as they are."""
    if isinstance(inputs, Mapping):
        return {name: _placed(value, device, dtype) for name, value in inputs.items()}
    return _placed(inputs, device, dtype)


def _placed(value: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    if not value.is_floating_point():
        return value.to(device)
    value = value.to(device, dtype)
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value.contiguous()
