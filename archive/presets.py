"""Presets: commands for one well-known architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A packaging command's defaults.

    Attributes:
        kind: of the model: "image-classifier" or "text-encoder", which is also the general command's name.
        batch_size: requests that are answered together.
        max_batch_delay_ms: how long the first request of a batch waits for others, in milliseconds.
        architecture: settings that the checkpoint's configuration has to have, and random weights get.
    """

    kind: str
    batch_size: int = 8
    max_batch_delay_ms: int = 1
    architecture: Mapping[str, Any] = field(default_factory=dict)


PRESETS: Mapping[str, Preset] = {
    # ImageNet-1k: He et al., arXiv:1512.03385.
    "resnet101": Preset("image-classifier", 64, 1, {"layers": "bottleneck", "depths": [3, 4, 23, 3]}),
    # Devlin et al., arXiv:1810.04805.
    "bert-large": Preset("text-encoder", 64, 1, {"hidden_size": 1024, "num_hidden_layers": 24}),
}


def of_command(command: str) -> Preset:
    """Return the preset, or the defaults of the command that takes every architecture."""
    return PRESETS.get(command, Preset(command))
