"""A benchmark's CSV, picture and table, made from the content of its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import bar_chart, line_chart
from benchmarks.points import Point, label, point_of
from benchmarks.results import Document, points, series, with_suffix, write_csv
from benchmarks.sweep import Row


def table(content: Document) -> str:
    """Markdown: a row per point and a column per engine, with items/s (ms); below it what was skipped."""
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
    """The machine, versions, and the measured ceilings, in one line."""
    ceilings = conditions["ceilings"]
    matmul = ", ".join(f"{precision} {value:.4g}" for precision, value in ceilings["matmul_tflops"].items())
    versions = [f"{name} {conditions[name]}" for name in ("torch", "tensorrt") if conditions[name]]
    return (
        f"{conditions['gpu']}, {', '.join(versions)}; "
        f"matmul {matmul} TFLOP/s, copy {ceilings['copy_tb_per_s']:.3g} TB/s"
    )


def draw(path: Path, content: Document) -> None:
    """Draw the picture: lines for images, bars for texts. Raises ImportError without matplotlib."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("Agg")
    plt: Any = import_module("matplotlib.pyplot")
    of_texts = any(point.length or point.mix for point in points(content["rows"]))
    figure = (bar_chart if of_texts else line_chart).draw(plt, content)
    figure.savefig(path)
    plt.close(figure)


def write_rest(out: Path, content: Document) -> None:
    """Write OUT.csv, and OUT.png if matplotlib is installed; print the table."""
    write_csv(with_suffix(out, "csv"), content["rows"])
    if not content["rows"]:
        print("no engine could be timed, so there is no picture")
    else:
        _draw_if_possible(out, content)
    print(f"\n{table(content)}")


def _draw_if_possible(out: Path, content: Document) -> None:
    try:
        draw(with_suffix(out, "png"), content)
    except ImportError as error:
        print(
            f"no picture: {error}. `pip install matplotlib` into .venv, then: "
            f"scripts/bench_model picture {with_suffix(out, 'json')}"
        )
