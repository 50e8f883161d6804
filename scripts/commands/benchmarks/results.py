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


def with_suffix(out: Path, suffix: str) -> Path:
    """OUT.suffix, even if OUT has dots of its own."""
    return out.with_name(f"{out.name}.{suffix}")


def document(sweep: Sweep) -> dict[str, Any]:
    """The content of OUT.json."""
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
    """Write the file in one step, so that it is complete whenever it is read, or the run is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    partial.replace(path)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows' COLUMNS."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by engine and precision, in order of first appearance: a line of the picture, a column of the table."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(name_of(row), []).append(row)
    return found


def name_of(row: Row) -> str:
    """ENGINE-PRECISION, as on the command line."""
    return f"{row['engine']}-{row['precision']}"


def points(rows: Sequence[Row]) -> list[Point]:
    """All points of the rows: by length, then by batch; mixes last, in the order of MIXES."""
    mixes = list(MIXES)

    def order(point: Point) -> tuple[int, int, int]:
        return (mixes.index(point.mix) + 1 if point.mix in mixes else 0, point.length or 0, point.batch)

    return sorted({point_of(row) for row in rows}, key=order)
