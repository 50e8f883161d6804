"""What people call the network of a folder. Imports no transformers, so that any worker can ask."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLAIN = {"groups": 1, "width_per_group": 64}  # of a ResNet that is neither a ResNeXt nor a Wide ResNet


def title(folder: Path) -> str:
    """Return a name for people: the network's class, and its timm architecture or its groups and width."""
    config: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = str((config.get("architectures") or [config.get("model_type", "unnamed")])[0])
    if config.get("model_type") == "timm_wrapper":
        return f"{name} ({config.get('architecture')})"
    groups, width = (config.get(key, plain) for key, plain in PLAIN.items())
    if config.get("model_type") != "resnet" or (groups, width) == tuple(PLAIN.values()):
        return name
    return f"{name} ({groups} group{'' if groups == 1 else 's'}, width {width} a group)"
