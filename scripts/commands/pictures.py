"""Whether pictures can be drawn here: said when a program starts, because what it measures may take hours."""

from __future__ import annotations

import shlex
import sys
from importlib import import_module

INSTALL = shlex.join([sys.executable, "-m", "pip", "install", "matplotlib"])


def missing() -> str | None:
    """Return why there will be no pictures, and the command that mends it; None if they can be drawn."""
    try:
        import_module("matplotlib")
    except ImportError as error:
        return f"no pictures will be drawn: {error}. Install it now: {INSTALL}"
    return None


def say_if_missing() -> None:
    """Print what `missing` returns, if anything."""
    if reason := missing():
        print(reason, flush=True)
