"""The picture of an image classifier's benchmark: lines of images/s over batch sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.results import Document, series
from benchmarks.sweep import Row


def draw(plt: Any, content: Document) -> Any:
    """Draw images/s against the batch size: one line per engine, the memory roofline dashed."""
    figure, axes = plt.subplots(figsize=(8, 5), dpi=150, layout="constrained")
    _draw_lines(axes, content)
    first = content["rows"][0]
    axes.set_xscale("log", base=2)
    batches = sorted({row["batch"] for row in content["rows"]})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set(xlabel="batch", ylabel=content["unit"], title=f"{first['model']} on {first['gpu']}")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return figure


def _draw_lines(axes: Any, content: Document) -> None:
    batches = sorted({int(row["batch"]) for row in content["rows"]})
    for name, line in series(content["rows"]).items():
        found = {int(row["batch"]): row["items_per_s"] for row in line}
        # A batch size that the engine was not timed at leaves a gap: a line across would claim what was not measured.
        axes.plot(batches, [found.get(batch, math.nan) for batch in batches], marker="o", label=name)
    precision, roof = ceiling(content["rows"])
    ceilings = content["conditions"]["ceilings"]
    label = (
        f"{precision} roofline of {ceilings['matmul_tflops'][precision]:.4g} TFLOP/s (matmul), "
        f"{ceilings['copy_tb_per_s']:.3g} TB/s (copy)"
    )
    axes.plot(*zip(*roof, strict=True), linestyle="--", color="black", linewidth=1, label=label)


def ceiling(rows: Sequence[Row]) -> tuple[str, list[tuple[int, float]]]:
    """The precision of the fastest row, and its memory roofline as (batch, items/s)."""
    precision = max(rows, key=lambda row: float(row["items_per_s"]))["precision"]
    found = {
        row["batch"]: row["items_per_s"] / row["share_of_memory_roofline"]
        for row in rows
        if row["precision"] == precision
    }
    return precision, sorted(found.items())
