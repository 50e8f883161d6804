"""The input of an image network, one tensor or tensors by the names of its parameters, and its output.

Most networks take pixels, (N, 3, H, W). Siglip 2 (NaFlex) takes patches, their mask and the grid's shape. ImageGPT
takes indices of colours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from handlers.engines.base import EngineSpec
from handlers.transfers import upload

ImageInputs = torch.Tensor | Mapping[str, torch.Tensor]


def outputs(network: Any, inputs: ImageInputs) -> torch.Tensor:
    """Run a network of transformers: logits of a classifier, pooled features of an encoder.

    CLIP's image tower gives its features behind the projection, as `CLIPModel.get_image_features` does. Others give
    their `pooler_output`. SigLIP's is that of `get_image_features`, DINOv2's the class token behind the last
    LayerNorm, ViT's the class token behind the pooling layer, and a CNN's the mean over all positions.

    Args:
        network: of transformers.
        inputs: of N images.

    Returns:
        (N, classes) or (N, features), in the network's dtype.
    """
    found = network(**inputs) if isinstance(inputs, Mapping) else network(inputs)
    for name in ("logits", "image_embeds", "pooler_output"):
        values = getattr(found, name, None)
        if isinstance(values, torch.Tensor):
            return values.flatten(1) if name == "pooler_output" else values
    raise ValueError(f"{type(network).__name__} gives neither logits nor pooled features")


def why_not_squares(spec: EngineSpec) -> str | None:
    """Return why an engine of square images of one size cannot run the spec's image network, or None."""
    if spec.kind != "image-classifier" or spec.image_size:
        return None
    return "it runs square images of one size, and the checkpoint's preprocessing makes other inputs"


def rows(inputs: ImageInputs, indices: torch.Tensor) -> ImageInputs:
    """Return the input of the images at these indices.

    Args:
        inputs: of N images.
        indices: (M,) int64.

    Returns:
        The same names and shapes, of M images.
    """
    if isinstance(inputs, Mapping):
        return {name: value[indices] for name, value in inputs.items()}
    return inputs[indices]


def device_of(inputs: ImageInputs) -> torch.device:
    """Return the device that the input lies on."""
    return next(iter(inputs.values())).device if isinstance(inputs, Mapping) else inputs.device


def placed(inputs: ImageInputs, device: torch.device, dtype: torch.dtype) -> ImageInputs:
    """Return the input on a device: floating-point tensors in `dtype`, pixels channels_last, integers as they are."""
    if isinstance(inputs, Mapping):
        return {name: _placed(value, device, dtype) for name, value in inputs.items()}
    return _placed(inputs, device, dtype)


def _placed(value: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    if not value.is_floating_point():
        return upload(value, device)
    value = upload(value.to(dtype), device)  # PyTorch too would cast it before it is copied
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value.contiguous()
