"""Draw README's picture from the benchmarks' JSON files: python scripts/research/readme_picture.py

Two groups of bars, one per network: how fast this project's engine runs it, and how fast other ways do. All bars of a
group are of one run on one GPU.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "docs" / "benchmarks"
PICTURE = BENCHMARKS / "engines.png"
OURS, OTHERS = "#1f6feb", "#b8c0cc"


@dataclass(frozen=True)
class Group:
    """One group of bars.

    run: a file of docs/benchmarks. point: what a row of it must have. names: a label per (engine, precision), in the
    order of the bars from top to bottom; the first is this project's.
    """

    title: str
    run: str
    point: dict[str, object]
    names: dict[tuple[str, str], str]


GROUPS = (
    Group(
        "ResNet-101, 64 images: images/s",
        "resnet101-h200.json",
        {"batch": 64},
        {
            ("cudnn", "fp16"): "this project (cudnn)",
            ("tensorrt", "fp16"): "TensorRT 8.6",
            ("compile", "fp16"): "torch.compile",
            ("eager", "fp16"): "PyTorch eager",
            ("eager", "fp32"): "PyTorch eager, fp32",
        },
    ),
    Group(
        "BERT-Large, 64 texts of 128 tokens: texts/s",
        "bert-large-h200.json",
        {"batch": 64, "length": 128},
        {
            ("fused", "fp16"): "this project (fused)",
            ("torch-fastpath", "fp16"): "PyTorch's fast path",
            ("hf-sdpa", "fp16"): "transformers, SDPA",
            ("hf-eager", "fp16"): "transformers, eager",
            ("hf-eager", "fp32"): "transformers, eager, fp32",
        },
    ),
)


def bars(group: Group) -> list[tuple[str, float]]:
    """Label and items/s of each bar. Raises KeyError if the run lacks one."""
    content: dict[str, Any] = json.loads((BENCHMARKS / group.run).read_text(encoding="utf-8"))
    fitting = [row for row in content["rows"] if all(row[key] == value for key, value in group.point.items())]
    speeds = {(row["engine"], row["precision"]): float(row["items_per_s"]) for row in fitting}
    return [(name, speeds[key]) for key, name in group.names.items()]


def draw(path: Path) -> None:
    """Write the picture as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(GROUPS), figsize=(11, 2.7), layout="constrained")
    for axis, group in zip(axes, GROUPS, strict=True):
        names, speeds = zip(*bars(group), strict=True)
        drawn = axis.barh(names, speeds, color=[OURS, *[OTHERS] * (len(names) - 1)], height=0.7)
        axis.bar_label(drawn, [f"{speed:,.0f}" for speed in speeds], padding=4, fontsize=9)
        axis.set_title(group.title, fontsize=10, loc="left")
        axis.invert_yaxis()
        axis.margins(x=0.14)
        axis.xaxis.set_visible(False)
        axis.tick_params(left=False, labelsize=9)
        for side in ("top", "right", "bottom", "left"):
            axis.spines[side].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(PICTURE)
