"""Where this checkout lies."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "config.properties"
MODEL_STORE = ROOT / "model_store"


def python_path(behind: str | None = None) -> str:
    """PYTHONPATH for a process that imports this tree. behind: folders that follow, as PYTHONPATH lists them."""
    return os.pathsep.join([str(ROOT), str(ROOT / "scripts" / "commands"), *filter(None, [behind])])
