"""The picture of a text encoder's benchmark: bars of TFLOP/s, which points of different lengths have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.points import label, point_of
from benchmarks.results import Document, name_of, points, series
from benchmarks.sweep import Row

GROUP_WIDTH = 0.84  # share of the distance between two points
DASHES = ("--", ":", "-.")


def draw(plt: Any, content: Document) -> Any:
    """Draw a group of bars per point and a colour per engine, with dashed lines at the speed of a plain matmul.

    The highest bar of a group carries its sequences/s.
    """
    figure, axes = plt.subplots(figsize=(11, 5.5), dpi=150, layout="constrained")
    _draw_bars(axes, content["rows"])
    _draw_ceilings(axes, content)
    first, found = content["rows"][0], points(content["rows"])
    axes.set_xticks(range(len(found)), [label(point) for point in found])
    axes.set_xlim(-0.5, len(found) - 0.5)
    axes.set(
        xlabel="sequences x tokens, or a mix of lengths",
        ylabel="TFLOP/s of real tokens",
        title=f"{first['model']} on {first['gpu']} (numbers: {content['unit']} of the fastest)",
    )
    axes.margins(y=0.08)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    for column, name in enumerate(series(content["rows"])):
        axes.bar(0, 0, color=f"C{column}", label=name)  # only for the legend
    figure.legend(loc="outside lower center", ncols=5, fontsize="small", frameon=False)
    return figure


def _draw_bars(axes: Any, rows: Sequence[Row]) -> None:
    """Draw each point's bars side by side, without gaps for engines that did not run it."""
    columns = list(series(rows))
    width = GROUP_WIDTH / len(columns)
    for index, point in enumerate(points(rows)):
        group = [row for row in rows if point_of(row) == point]
        best = max(group, key=lambda row: float(row["tflops"]))
        for column, row in enumerate(sorted(group, key=lambda row: columns.index(name_of(row)))):
            middle = index + (column - (len(group) - 1) / 2) * width
            axes.bar(middle, row["tflops"], width * 0.92, color=f"C{columns.index(name_of(row))}")
            if row is best:
                _write_above(axes, middle, row)


def _write_above(axes: Any, middle: float, row: Row) -> None:
    axes.annotate(
        f"{row['items_per_s']:,.0f}",
        (middle, row["tflops"]),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize="small",
    )


def _draw_ceilings(axes: Any, content: Document) -> None:
    """Draw the speed of a plain matmul in each precision but fp32, whose line would lie on the axis."""
    ceilings = content["conditions"]["ceilings"]["matmul_tflops"]
    ran = list(dict.fromkeys(row["precision"] for row in content["rows"]))
    shown = [precision for precision in ran if precision != "fp32"] or ran
    for dash, precision in zip(DASHES, shown, strict=False):
        text = f"{precision} matmul, {ceilings[precision]:.4g} TFLOP/s"
        axes.axhline(ceilings[precision], linestyle=dash, color="black", linewidth=1, label=text)
