"""Presets: commands for one well-known architecture. Each has a folder with a preset.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FOLDERS = {"resnet101": "resnet101", "bert-large": "bert_large"}


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


def of_command(command: str) -> Preset:
    """Return the preset's content, or the defaults of the command that takes every architecture."""
    if command not in FOLDERS:
        return Preset(kind=command)
    path = Path(__file__).parent / FOLDERS[command] / "preset.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    torchserve = content.pop("torchserve")
    return Preset(content.pop("kind"), torchserve["batchSize"], torchserve["maxBatchDelay"], content)
