"""A benchmark's JSON, and the CSV, picture and table that are drawn from it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.points import MIXES, Point, label, point_of
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


def table(content: Document) -> str:
    """Markdown: one row a point, one column an engine, items/s (ms); below it what was skipped."""
    columns = series(content["rows"])
    found = points(content["rows"])
    head = "batch x tokens" if any(point.length or point.mix for point in found) else "batch"
    lines = [
        "| " + " | ".join([head, *columns]) + " |",
        "|---:" * (len(columns) + 1) + "|",
        *(_table_line(point, columns) for point in found),
        "",
        f"{content['unit']} (ms, median); {conditions_line(content['conditions'])}",
    ]
    for item in content["skipped"]:
        at = "" if item["batch"] is None else f" at {label(point_of(item))}"
        lines.append(f"- not run: {item['engine']}{at}: {item['reason']}")
    return "\n".join(lines)


def _table_line(point: Point, columns: Mapping[str, Sequence[Row]]) -> str:
    cells = [label(point)]
    for rows in columns.values():
        row = next((row for row in rows if point_of(row) == point), None)
        cells.append("-" if row is None else f"{row['items_per_s']:,.0f} ({row['ms_p50']:.2f})")
    return "| " + " | ".join(cells) + " |"


def conditions_line(conditions: Mapping[str, Any]) -> str:
    """On what it ran, and the ceilings measured there."""
    ceilings = conditions["ceilings"]
    matmul = ", ".join(f"{precision} {value:.4g}" for precision, value in ceilings["matmul_tflops"].items())
    versions = [f"{name} {conditions[name]}" for name in ("torch", "tensorrt") if conditions[name]]
    return (
        f"{conditions['gpu']}, {', '.join(versions)}; "
        f"matmul {matmul} TFLOP/s, copy {ceilings['copy_tb_per_s']:.3g} TB/s"
    )


def draw(path: Path, content: Document) -> None:
    """The picture: of images lines over batches, of texts bars by point. Raises ImportError without matplotlib."""
    from benchmarks import bars, lines

    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("Agg")
    plt: Any = import_module("matplotlib.pyplot")
    of_texts = any(point.length or point.mix for point in points(content["rows"]))
    figure = (bars if of_texts else lines).draw(plt, content)
    figure.savefig(path)
    plt.close(figure)


def write_rest(out: Path, content: Document) -> None:
    """OUT.csv, OUT.png where matplotlib is installed, and the table to the terminal."""
    write_csv(beside(out, "csv"), content["rows"])
    if not content["rows"]:
        print("no engine could be timed, so there is no picture")
    else:
        _draw_or_say(out, content)
    print(f"\n{table(content)}")


def _draw_or_say(out: Path, content: Document) -> None:
    try:
        draw(beside(out, "png"), content)
    except ImportError as error:
        print(
            f"no picture: {error}. `pip install matplotlib` into .venv, then: "
            f"scripts/bench_model picture {beside(out, 'json')}"
        )
