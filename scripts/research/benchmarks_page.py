"""Fill the tables of docs/benchmarks.md and README.md from the JSON files in docs/benchmarks.

    .venv/bin/python scripts/research/benchmarks_page.py            writes the tables into the pages
    .venv/bin/python scripts/research/benchmarks_page.py --check    exit status 1 if a table is not up to date

A page holds a pair of comments per table, `<!-- table: NAME -->` and `<!-- end -->`. NAME is a key of TABLES. What
stands between the two is replaced. All other text is written by hand.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
FOLDER = ROOT / "docs" / "benchmarks"
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = Mapping[str, Any]
Table = Callable[[], Sequence[str]]
Point = tuple[int, int | None, str | None]


class Column(NamedTuple):
    """A column of a table of engines: its heading, the run that it comes from, and the rows' engine and precision."""

    heading: str
    run: str
    engine: str
    precision: str


RESNET_H200 = (
    Column("cudnn fp16", "resnet101-h200", "cudnn", "fp16"),
    Column("cudnn fp16, no Triton", "resnet101-tensorrt-h200", "cudnn", "fp16"),
    Column("tensorrt fp16", "resnet101-tensorrt-h200", "tensorrt", "fp16"),
    Column("torch2trt's plan, fp16", "resnet101-torch2trt-h200", "torch2trt", "fp16"),
    Column("torch.compile fp16", "resnet101-h200", "compile", "fp16"),
    Column("eager fp16, channels_last", "resnet101-h200", "eager", "fp16"),
    Column("eager fp32", "resnet101-h200", "eager", "fp32"),
)
BERT_ENGINES = (
    ("fused fp16", "fused", "fp16"),
    ("fused fp8", "fused", "fp8"),
    ("PyTorch fast path, fp16", "torch-fastpath", "fp16"),
    ("transformers, SDPA, fp16", "hf-sdpa", "fp16"),
    ("transformers, eager, fp16", "hf-eager", "fp16"),
    ("transformers, eager, fp32", "hf-eager", "fp32"),
)
BERT_H200 = (
    *(Column(heading, "bert-large-h200", engine, precision) for heading, engine, precision in BERT_ENGINES),
    Column("TensorRT fp16", "bert-large-tensorrt-h200", "tensorrt", "fp16"),
    Column("torch.compile fp16", "bert-large-tensorrt-h200", "compile", "fp16"),
)
BERT_H100 = tuple(
    Column(heading, "bert-large-h100", engine, precision) for heading, engine, precision in BERT_ENGINES
)
IMAGES: tuple[Point, ...] = tuple((size, None, None) for size in (1, 2, 4, 8, 16, 32, 64, 128, 256))
TEXTS: tuple[Point, ...] = (
    *((1, 128, None), (8, 128, None), (32, 128, None), (64, 128, None), (32, 384, None), (64, 384, None)),
    *((256, None, "squad"), (64, None, "half"), (8, None, "short8")),
)
MIXES = {"squad": "256 of SQuAD-like lengths", "half": "64 of 3 to 381", "short8": "8 of 10 to 128"}
ENGINE_RUNS_H200 = (
    *("resnet101-h200", "resnet101-tensorrt-h200", "resnet101-torch2trt-h200"),
    *("bert-large-h200", "bert-large-tensorrt-h200"),
)
SERVING_H200 = tuple(
    f"serving-{name}-h200"
    for name in (
        *("resnet101-jpeg-latency", "resnet101-jpeg-1280", "resnet101-uint8"),
        *("bert-large-one-text-batch64", "bert-large-32-json", "bert-large-32-raw"),
    )
)
BY_WORKERS_H200 = ("serving-resnet101-jpeg-h200", "serving-bert-large-one-text-h200")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables, or compare them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a table is old")
    check = parser.parse_args(arguments).check
    return max([_bring_up_to_date(page, check) for page in PAGES])


def _bring_up_to_date(page: Path, check: bool) -> int:
    """Write a page's tables, or compare them; returns the exit status."""
    old = page.read_text(encoding="utf-8")
    new = filled(old)
    if not check:
        page.write_text(new, encoding="utf-8")
    elif new != old:
        print(f"{page.relative_to(ROOT)}: tables are old; {Path(__file__).relative_to(ROOT)} writes", file=sys.stderr)
        return 1
    return 0


def filled(text: str, tables: Mapping[str, Table] | None = None) -> str:
    """The page's text with all its tables made anew. Raises KeyError for a table that `tables` does not name."""
    makers = TABLES if tables is None else tables
    return MARKED.sub(lambda found: "\n".join([found[1], *makers[found[2]](), "", found[3]]), text)


def engines(first: str, columns: Sequence[Column], points: Sequence[Point]) -> list[str]:
    """Items/s (median ms) with a row per point. The last row names each column's commit."""
    lines = [line([first, *(column.heading for column in columns)]), line(["---:"] * (len(columns) + 1))]
    for point in points:
        lines.append(line([_label(point), *(_speed(column, point) for column in columns)]))
    return [*lines, line(["commit", *(_conditions(column.run)["commit"] for column in columns)])]


def serving(runs: Sequence[str]) -> list[str]:
    """What a client gets: the fastest closed loop of each load, batch size and count of workers."""
    head = (
        *("model", "one request", "batch size", "workers", "clients", "items/s", "p50 ms", "p99 ms"),
        *("p99 ms at 70 %", "GPU busy", "no-op / model"),
    )
    lines = [line(head), line(["---", "---", *["---:"] * (len(head) - 2)])]
    for run in runs:
        rows = _rows(run, kind="archive", loop="closed")
        for size, workers in sorted({(row["batch_size"], row["workers"]) for row in rows}):
            same = [row for row in rows if (row["batch_size"], row["workers"]) == (size, workers)]
            lines.append(_served(max(same, key=_items_per_s), _rows(run, loop="open")))
    return lines


def fastest(runs: Sequence[str]) -> list[str]:
    """What a client gets at most, and the latency at 70 % of that, with a row per kind of request."""
    lines = [
        line(["model", "one request", "images or texts/s", "p99 ms", "p99 ms at 70 % of that"]),
        line(["---"] * 2 + ["---:"] * 3),
    ]
    for run in runs:
        row = max(_rows(run, kind="archive", loop="closed"), key=_items_per_s)
        times = (f"{row['p99_ms']:.0f}", _at_70_percent(row, _rows(run, loop="open")))
        lines.append(line([row["target"], row["load"], f"{row['items_per_s']:,.0f}", *times]))
    return lines


def by_workers(run: str) -> list[str]:
    """Items/s and p99 with a row per count of workers, a column per count of clients."""
    rows = _rows(run, kind="archive", loop="closed")
    clients, workers = (sorted({row[name] for row in rows}) for name in ("clients", "workers"))
    found = {(row["workers"], row["clients"]): f"{row['items_per_s']:,.0f} ({row['p99_ms']:.0f})" for row in rows}
    lines = [line(["workers", *(f"{count} clients" for count in clients)]), line(["---:"] * (len(clients) + 1))]
    return [*lines, *(line([str(w), *(found.get((w, c), "-") for c in clients)]) for w in workers)]


def by_gpus(runs: Sequence[str]) -> list[str]:
    """With a row per count of GPUs, what the model and the handler that does nothing reach."""
    head = (
        "one request",
        "handler",
        "GPUs",
        "TorchServes",
        "workers",
        "clients",
        "items/s",
        "of linear",
        "p50 ms",
        "p99 ms",
        "p99 ms at 70 %",
        "GPU busy",
    )
    lines = [line(head), line(["---", "---", *["---:"] * (len(head) - 2)])]
    for run in runs:
        lines += [_on_gpus(row, _rows(run, loop="open")) for row in _rows(run, loop="closed")]
    return lines


def by_mps(runs: Sequence[str]) -> list[str]:
    """Items/s, p99 and the GPU's busy share by the number of workers, with and without MPS."""
    head = ["workers", *(f"{_rows(run)[0]['target']}, MPS {mps}" for run in runs for mps in ("off", "on"))]
    lines = [line(head), line(["---:"] * len(head))]
    for workers in sorted({row["workers"] for row in _rows(runs[0])}):
        cells = [_rows(run, workers=workers, mps=mps)[0] for run in runs for mps in ("off", "on")]
        lines.append(line([workers, *map(_with_mps, cells)]))
    return lines


def decoders(run: str) -> list[str]:
    """Images/s of libraries that decode JPEGs, and how far their pixels are from Pillow's."""
    lines = [
        line(["library", "version", "images/s", "mean difference", "largest"]),
        line(["---", "---", *["---:"] * 3]),
    ]
    for row in read(run)["rows"]:
        if "why_not" in row:
            lines.append(line([row["library"], "-", f"none: {row['why_not'].partition(': ')[2]}", "-", "-"]))
        else:
            differences = (f"{row['mean_difference']:.2f}", row["largest_difference"])
            lines.append(line([row["library"], row["version"], f"{row['images_per_s']:,}", *differences]))
    return lines


def peers(runs: Sequence[str]) -> list[str]:
    """What the same network gives through other servers in the same run; each row says how many answers agree."""
    head = ("server", "one request", "workers", "load", "requests/s", "p50 ms", "p99 ms", "same answers", "errors")
    lines = [line(head), line(["---", "---", "---:", "---", *["---:"] * 5])]
    for run in runs:
        lines += [_peer(row) for row in _rows(run) if row["kind"] in ("archive", "peer")]
    return lines


def conditions(runs: Sequence[str]) -> list[str]:
    """With a row per run of engines, what it was measured with, and the ceilings that it measured."""
    versions = ("Python", "PyTorch", "cuDNN", "TensorRT", "driver")
    head = (*("run", "date", "commit"), *versions, "fp16 matmul TFLOP/s", "copy TB/s")
    return [line(head), line(["---"] * len(head)), *(line(_condition(run)) for run in runs)]


def serving_conditions(runs: Sequence[str]) -> list[str]:
    """With a row per run over HTTP, what it was measured with."""
    head = ("run", "date", "commit", "Python", "PyTorch", "TorchServe", "transformers", "Java", "driver")
    return [line(head), line(["---"] * len(head)), *(line(_serving_condition(run)) for run in runs)]


MPS_H200 = ("serving-resnet101-workers-h200", "serving-bert-large-workers-h200")
RAY_H200 = ("serving-bert-large-32-raw-ray-h200", "serving-bert-large-32-raw-ray-128-clients-h200")
GPUS_H100 = ("serving-resnet101-gpus-h100", "serving-bert-large-32-raw-h100")
GPUS_H200 = ("serving-resnet101-gpus-h200", "serving-bert-large-32-raw-gpus-h200")
SERVING_H100 = ("serving-resnet101-jpeg-h100", "serving-bert-large-one-text-batch64-h100")
PEERS_H100 = ("serving-resnet101-peers-h100", "serving-bert-large-peers-h100")
HOSTS_CPU = ("serving-hosts-cpu",)

TABLES: dict[str, Table] = {
    "fastest-h200": functools.partial(fastest, SERVING_H200),
    "gpus-h200": functools.partial(by_gpus, GPUS_H200),
    "mps-h200": functools.partial(by_mps, MPS_H200),
    "ray-h200": functools.partial(by_gpus, RAY_H200),
    "jpeg-decoders-h200": functools.partial(decoders, "jpeg-decoders-h200"),
    "gpus-h100": functools.partial(by_gpus, GPUS_H100),
    "peers-h100": functools.partial(peers, PEERS_H100),
    "hosts-cpu": functools.partial(peers, HOSTS_CPU),
    "serving-conditions-h100": functools.partial(serving_conditions, (*SERVING_H100, *GPUS_H100, *PEERS_H100)),
    "serving-conditions-cpu": functools.partial(serving_conditions, HOSTS_CPU),
    "resnet101-h200": functools.partial(engines, "batch", RESNET_H200, IMAGES),
    "bert-large-h200": functools.partial(engines, "sequences x tokens", BERT_H200, TEXTS),
    "bert-large-h100": functools.partial(engines, "sequences x tokens", BERT_H100, TEXTS),
    "serving-h200": functools.partial(serving, SERVING_H200),
    "serving-h100": functools.partial(serving, SERVING_H100),
    "jpeg-by-workers-h100": functools.partial(by_workers, "serving-resnet101-jpeg-h100"),
    "text-by-workers-h100": functools.partial(by_workers, "serving-bert-large-one-text-batch64-h100"),
    "jpeg-by-workers-h200": functools.partial(by_workers, BY_WORKERS_H200[0]),
    "text-by-workers-h200": functools.partial(by_workers, BY_WORKERS_H200[1]),
    "engine-conditions-h200": functools.partial(conditions, ENGINE_RUNS_H200),
    "engine-conditions-h100": functools.partial(conditions, ("bert-large-h100",)),
    "serving-conditions-h200": functools.partial(
        serving_conditions,
        (*SERVING_H200, *BY_WORKERS_H200, *GPUS_H200, *MPS_H200, *RAY_H200, "serving-resnet101-batch-sizes-h200"),
    ),
}


@functools.cache
def read(run: str) -> Mapping[str, Any]:
    """A run's JSON."""
    content: dict[str, Any] = json.loads((FOLDER / f"{run}.json").read_text(encoding="utf-8"))
    return content


def _conditions(run: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = read(run)["conditions"]
    return found


def _rows(run: str, **wanted: object) -> list[Row]:
    return [row for row in read(run)["rows"] if all(row[key] == value for key, value in wanted.items())]


def _speed(column: Column, point: Point) -> str:
    """The cell of one engine at one point, "-" if that was not measured."""
    batch, length, mix = point
    wanted = {"engine": column.engine, "precision": column.precision, "batch": batch, "length": length, "mix": mix}
    rows = _rows(column.run, **wanted)
    return f"{rows[0]['items_per_s']:,.0f} ({rows[0]['ms_p50']:.2f})" if rows else "-"


def _label(point: Point) -> str:
    batch, length, mix = point
    if mix:
        return MIXES[mix]
    return f"{batch} x {length}" if length else str(batch)


def _items_per_s(row: Row) -> float:
    return float(row["items_per_s"])


def _served(row: Row, open_loop: Sequence[Row]) -> str:
    headroom = row.get("headroom")
    return line(
        [
            *(row["target"], row["load"], row["batch_size"], row["workers"], row["clients"]),
            *(f"{row['items_per_s']:,.0f}", f"{row['p50_ms']:.0f}", f"{row['p99_ms']:.0f}"),
            *(_at_70_percent(row, open_loop), f"{row['gpu_busy'][0]:.0%}"),
            f"{headroom:.2f}" if headroom else "-",
        ]
    )


def _at_70_percent(row: Row, open_loop: Sequence[Row]) -> str:
    """The p99 of the open loop with the servers and batch size of the closed loop `row`; "-" if there is none."""
    same = ("target", "gpus", "servers", "workers", "batch_size")
    found = [other for other in open_loop if all(other[key] == row[key] for key in same)]
    return f"{found[0]['p99_ms']:.0f}" if found else "-"


def _with_mps(row: Row) -> str:
    return f"{row['items_per_s']:,.0f} ({row['p99_ms']:.0f}, {row['gpu_busy'][0]:.0%})"


def _on_gpus(row: Row, open_loop: Sequence[Row]) -> str:
    """The line of a closed loop. open_loop: the run's rows, of which that of the same servers gives the last p99."""
    share = row.get("share_of_linear")
    return line(
        [
            *(row["load"], row["target"], row["gpus"], row["servers"], row["workers"], row["clients"]),
            *(f"{row['items_per_s']:,.0f}", f"{share:.0%}" if share else "-"),
            *(f"{row['p50_ms']:.0f}", f"{row['p99_ms']:.0f}", _at_70_percent(row, open_loop)),
            " ".join(f"{busy:.0%}" for busy in row["gpu_busy"]),
        ]
    )


def _peer(row: Row) -> str:
    clients = f"{row['clients']} client{'s' if row['clients'] != 1 else ''}"
    load = clients if row["clients"] else f"{row['rate']:,.0f} requests/s, {row['asked']}"
    return line(
        [
            *(row["target"], row["load"], row["workers"], load, f"{row['requests_per_s']:,.0f}"),
            *(f"{row['p50_ms']:.0f}", f"{row['p99_ms']:.0f}", row["agrees"] or "-", row["errors"]),
        ]
    )


def _condition(run: str) -> list[str]:
    said = _conditions(run)
    ceilings = said["ceilings"]
    return [
        *_origin(run),
        *(said["python"], said["torch"], str(said["cudnn"]), said["tensorrt"] or "-", said["driver"]),
        *(f"{ceilings['matmul_tflops']['fp16']:.0f}", f"{ceilings['copy_tb_per_s']:.2f}"),
    ]


def _serving_condition(run: str) -> list[str]:
    said = _conditions(run)
    packages = said["packages"]
    versions = (said["torch"], packages["torchserve"], packages["transformers"], said["java"], said["driver"] or "-")
    return [*_origin(run), said["python"], *versions]


def _origin(run: str) -> list[str]:
    said = _conditions(run)
    return [f"[{run}](benchmarks/{run}.json)", said["date"][:10], said["commit"]]


def line(cells: Sequence[object]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
