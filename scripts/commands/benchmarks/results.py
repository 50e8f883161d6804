"""The content of a benchmark's JSON, and how it is written and read: rows, series, points."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.points import MIXES, Point, point_of
from benchmarks.sweep import Row, Sweep

COLUMNS = (
    "model",
    "engine",
    "precision",
    "batch",
    "length",
    "mix",
    "ms_p50",
    "ms_p90",
    "items_per_s",
    "tflops",
    "gpu",
    "torch",
    "tensorrt",
    "commit",
    "share_of_matmul",
    "share_of_memory_roofline",
    "peak_mb",
    "relative_error",
)
Document = Mapping[str, Any]


def beside(out: Path, suffix: str) -> Path:
    """OUT.suffix, whatever dots OUT has."""
    return out.with_name(f"{out.name}.{suffix}")


def document(sweep: Sweep) -> dict[str, Any]:
    """What OUT.json holds."""
    ceilings = asdict(sweep.ceilings)
    return {
        "conditions": {**sweep.conditions, "ceilings": ceilings},
        "unit": sweep.workload.unit,
        "engines": sweep.details,
        "skipped": sweep.skipped,
        "rows": sweep.rows,
        **({"kernels": sweep.kernels} if sweep.kernels else {}),
    }


def write_json(path: Path, content: Document) -> None:
    """In one step, so that whoever reads, or kills the run, finds a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    partial.replace(path)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by line of the picture and column of the table, in order of first appearance."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(name_of(row), []).append(row)
    return found


def name_of(row: Row) -> str:
    """As on the command line: ENGINE-PRECISION."""
    return f"{row['engine']}-{row['precision']}"


def points(rows: Sequence[Row]) -> list[Point]:
    """By length, then batch; mixes last, in the order of MIXES."""
    mixes = list(MIXES)

    def place(point: Point) -> tuple[int, int, int]:
        return (mixes.index(point.mix) + 1 if point.mix in mixes else 0, point.length or 0, point.batch)

    return sorted({point_of(row) for row in rows}, key=place)
