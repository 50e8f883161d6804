"""Triton kernels: tensors in, tensors out. Importing a file of this folder needs Triton.

encoder, linear: of handlers.encoder. resnet: of the cuDNN engine. resize: of pictures that a GPU decodes.
"""

from __future__ import annotations

import importlib.util

import torch


def why_not_on(device: torch.device) -> str | None:
    """Return why the encoder's kernels cannot run on this GPU, or None."""
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 or newer"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, which torch for CUDA on Linux brings"
    return None
