"""The engine's own speed, and the share of it that serving reaches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.points import label, point_of


@dataclass(frozen=True)
class EngineSpeed:
    """What one engine does alone.

    items_per_s: on one GPU, or on all cores of a machine without GPUs. gpus: that are visible to the servers; 0 for
    an engine on the CPU.
    """

    items_per_s: float
    gpus: int = 0

    def share(self, row: Mapping[str, Any]) -> float | None:
        """Return a row's items/s divided by what its GPUs would do alone; None for a no-op, which has no engine.

        Fewer workers than GPUs use as many GPUs as there are workers.
        """
        if row["kind"] == "no-op":
            return None
        gpus = row.get("gpus") or self.gpus
        used = max(1, min(gpus, row["workers"] or gpus))
        return float(f"{row['items_per_s'] / (self.items_per_s * used):.5g}")


def given(asked: str | None, gpus: int) -> EngineSpeed | None:
    """Return the speed that the option names, as `items_per_s` has it. gpus: visible ones."""
    found = items_per_s(asked)
    return EngineSpeed(found, gpus) if found else None


def items_per_s(asked: str | None) -> float | None:
    """ "26000" -> 26000; "FILE.json" -> its fastest row; "FILE.json:32x128" -> its fastest at that point.

    Raises ValueError if there is none.
    """
    if asked is None:
        return None
    try:
        return float(asked)
    except ValueError:
        pass
    name, colon, point = asked.rpartition(":")
    file = Path(name if colon else asked)
    if not file.is_file():
        raise ValueError(f"--engine-items-per-second {asked}: there is no file {file}; wanted: a number, or that")
    rows = json.loads(file.read_text(encoding="utf-8")).get("rows", [])
    found = [float(row["items_per_s"]) for row in rows if not colon or label(point_of(row)).replace(" ", "") == point]
    if not found:
        raise ValueError(f"{file} has no row{f' at {point}' if colon else ''}")
    return max(found)
