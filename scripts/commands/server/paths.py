"""Where this checkout lies."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "config.properties"
MODEL_STORE = ROOT / "model_store"
