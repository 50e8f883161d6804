"""The engine's own speed, from a JSON of scripts/bench_model."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.points import label, point_of


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
