"""A benchmark's JSON, and the CSV, picture and table that are drawn from it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.sweep import Row, Sweep

COLUMNS = (
    "model",
    "engine",
    "precision",
    "batch",
    "length",
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
        found.setdefault(f"{row['engine']}-{row['precision']}", []).append(row)
    return found


def table(content: Document) -> str:
    """Markdown: one row a batch (and length), one column an engine, items/s (ms); below it what was skipped."""
    columns = series(content["rows"])
    points = sorted({_point(row) for row in content["rows"]})
    lines = [
        "| " + " | ".join(["batch", *columns]) + " |",
        "|---:" * (len(columns) + 1) + "|",
        *(_table_line(point, columns) for point in points),
        "",
        f"{content['unit']} (ms, median); {conditions_line(content['conditions'])}",
    ]
    for item in content["skipped"]:
        batch = "" if item["batch"] is None else f" at batch {item['batch']}"
        lines.append(f"- not run: {item['engine']}{batch}: {item['reason']}")
    return "\n".join(lines)


def _point(row: Row) -> tuple[int, int]:
    return (row["length"] or 0, row["batch"])


def _table_line(point: tuple[int, int], columns: Mapping[str, Sequence[Row]]) -> str:
    length, batch = point
    cells = [f"{batch} x {length}" if length else f"{batch}"]
    for rows in columns.values():
        row = next((row for row in rows if _point(row) == point), None)
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


def ceiling(rows: Sequence[Row]) -> tuple[str, list[tuple[int, float]]]:
    """The precision of the fastest row, and its memory roofline as (batch, items/s)."""
    precision = max(rows, key=lambda row: float(row["items_per_s"]))["precision"]
    found = {
        row["batch"]: row["items_per_s"] / row["share_of_memory_roofline"]
        for row in rows
        if row["precision"] == precision
    }
    return precision, sorted(found.items())


def draw(path: Path, content: Document) -> None:
    """Items/s against batch, one line an engine (and length), the roofline dashed. Raises ImportError."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("Agg")
    plt: Any = import_module("matplotlib.pyplot")
    figure, axes = plt.subplots(figsize=(8, 5), dpi=150, layout="constrained")
    _draw_lines(axes, content)
    first = content["rows"][0]
    axes.set_xscale("log", base=2)
    batches = sorted({row["batch"] for row in content["rows"]})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set(xlabel="batch", ylabel=content["unit"], title=f"{first['model']} on {first['gpu']}")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)
    plt.close(figure)


def _draw_lines(axes: Any, content: Document) -> None:
    for length in sorted({row["length"] or 0 for row in content["rows"]}):
        rows = [row for row in content["rows"] if (row["length"] or 0) == length]
        after = f", length {length}" if length else ""
        for name, line in series(rows).items():
            ordered = sorted(line, key=lambda row: int(row["batch"]))
            heights = [row["items_per_s"] for row in ordered]
            axes.plot([row["batch"] for row in ordered], heights, marker="o", label=name + after)
        precision, roof = ceiling(rows)
        ceilings = content["conditions"]["ceilings"]
        label = (
            f"{precision} roofline of {ceilings['matmul_tflops'][precision]:.4g} TFLOP/s (matmul), "
            f"{ceilings['copy_tb_per_s']:.3g} TB/s (copy){after}"
        )
        axes.plot(*zip(*roof, strict=True), linestyle="--", color="black", linewidth=1, label=label)


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
            f"no picture: {error}. Where matplotlib is installed: scripts/bench_model picture {beside(out, 'json')}"
        )
