"""Compares an engine with fp32 again if another machine or another GPU has kept the result that names it.

A folder of plans may be shared by machines. A result's file is found by all that outputs are known to depend
on. What is not known, such as a driver or a defect, shows in the outputs alone. Times are not measured again.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from handlers.engines import EngineSpec, LoadedEngine
from handlers.selection import references

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # the same in all containers of a host, until it starts again

logger = logging.getLogger(__name__)


def here(device: torch.device) -> str:
    """Return an identifier of this machine, since it started, and of its GPU: the same in all processes."""
    return hashlib.sha256(f"{_machine()} {device_id(device)}".encode()).hexdigest()[:16]


def device_id(device: torch.device) -> str:
    """Return an identifier of the GPU that is the same in all processes, or "cpu"."""
    if device.type != "cuda":
        return str(device)
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", device.index))


def refuse_wrong(kept_by: object, loaded: Mapping[str, LoadedEngine], spec: EngineSpec) -> None:
    """Compare engines, unless it was here that they were compared.

    Args:
        kept_by: what `here` returned where the result was kept; None if that is not known.
        loaded: the engines that are to serve, by name.
        spec: the model.

    Raises:
        ValueError: if one of them does not give fp32's outputs here.
    """
    if kept_by == here(spec.device):
        return
    logger.info("comparing %s with fp32: that was done elsewhere, or before this machine started", ", ".join(loaded))
    reference = references.of(spec)
    for name, engine in loaded.items():
        deviation = reference.compare(engine, spec)
        if not deviation.passed:
            raise ValueError(f"engine {name} gives other outputs here: {deviation}")


@functools.cache
def _machine() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()
