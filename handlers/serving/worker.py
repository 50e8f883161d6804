"""What tells one worker's figures from another's, and how much memory the worker takes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from handlers import loading
from handlers.protocol.context import Context

# In a line of a metric these separate labels; TorchServe drops a label that holds one, and the whole value with it.
SEPARATORS = re.compile(r"[\s,:|#\[\]]+")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Worker:
    """One worker, by the values of its labels.

    Args:
        model, version: of the archive that it serves.
        name: as TorchServe's own metric WorkerLoadTime has it, as "W-9000-digits_1.0".
        engine, precision: that serve.
        device: "cpu", or "cuda0" for the first GPU.
    """

    model: str
    version: str
    name: str
    engine: str = "unknown"
    precision: str = "unknown"
    device: str = "cpu"

    @classmethod
    def of(cls, context: Context, model: loading.Model[Any] | None) -> Worker:
        """Return this process's worker. model: what it has loaded; None leaves engine and device unknown."""
        name, version = label(context.model_name), label(loading.version(context))
        worker = f"W-{_port()}-{name}_{version}"
        if model is None:
            return cls(name, version, worker)
        engine: Mapping[str, object] = model.description.get("engine", {})
        device = f"{model.device.type}{'' if model.device.type == 'cpu' else model.device.index or 0}"
        return cls(name, version, worker, label(engine.get("name")), label(model.spec.precision), device)


def label(value: object) -> str:
    """Return a value as a label that TorchServe can read: not empty, and without its separators."""
    return SEPARATORS.sub("_", str(value or "")) or "unknown"


def memory() -> int:
    """Return the bytes of memory that this process has in use (its resident set); 0 if Linux does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE
    except (OSError, ValueError, IndexError):
        return 0


def gpu_memory() -> int | None:
    """Return the bytes of GPU memory that PyTorch's allocator holds; None if this process uses no GPU."""
    return torch.cuda.memory_reserved() if torch.cuda.is_initialized() else None


def _port() -> str:
    """The number by which TorchServe tells its workers apart: at the end of its option for the socket; else "0"."""
    options = zip(sys.argv, sys.argv[1:], strict=False)
    value = next((value for name, value in options if name in ("--sock-name", "--port")), "")
    found = re.search(r"\d+$", value)
    return found[0] if found else "0"
