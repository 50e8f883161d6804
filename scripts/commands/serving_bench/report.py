"""A benchmark of serving as JSON, CSV, and a table for a terminal."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import write_json

from serving_bench import completeness, engine_alone, stages
from serving_bench.measure import Bench
from serving_bench.rows import Row, disturbed, layout_words, troubles

COLUMNS = (
    *("target", "kind", "load", "loop", "workers", "batch_size", "max_batch_delay_ms", "clients", "rate"),
    *("requests_per_s", "items_per_s", "unit", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms", "mean_ms"),
    *("errors", "answers_right", "answers_wrong", "agrees", "mean_batch", "mean_batch_items"),
    *("outside_ms", "queue_ms", "exchange_ms", "handler_ms", "read_ms", "prepare_ms", "run_ms", "write_ms"),
    "stages_missing",
    *(
        "cores_java",
        "cores_workers",
        "cores_server",
        "cores_other",
        "cores_generator",
        "cores_elsewhere",
        "rss_mib_java",
        "rss_mib_workers",
        "rss_mib_server",
    ),
    *("gpu_busy", "gpu_memory_mib", "gpu_mib_per_worker", "ready_s"),
    *("noop_requests_per_s", "headroom", "share_of_engine", "answer_bytes", "generator", "late_p99_ms", "seconds"),
    *("limited_by", "gpu", "commit"),
)
# Shown only if a row has one.
OF_LAYOUTS = (*("gpus", "servers", "mps", "workers_per_gpu", "share_of_linear", "gpu_busy_mean", "gpu_busy_least"),)
EXTRA = ("of the engine", "layout", "of linear", "at its limit")  # columns of the table for a terminal
Document = Mapping[str, Any]


def document(bench: Bench, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of OUT.json. about: conditions, settings, archives.

    Everything that was asked for has rows in it, or a reason.
    """
    content = {**about, "rows": bench.rows, "skipped": bench.skipped}
    return {**content, "skipped": [*bench.skipped, *completeness.missing(content)]}


def write(out: Path, content: Document) -> None:
    """Write OUT.json and OUT.csv."""
    write_json(out.with_name(f"{out.name}.json"), content)
    with out.with_name(f"{out.name}.csv").open("w", newline="", encoding="utf-8") as stream:
        used = [key for key in OF_LAYOUTS if any(row.get(key) is not None for row in content["rows"])]
        writer = csv.DictWriter(stream, [*COLUMNS, *used], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat(row, content["conditions"]) for row in content["rows"])


def flat(row: Row, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """A row in COLUMNS; the values of several GPUs are joined by ";"."""
    nested = {f"{key}_{group}": value for key in ("cores", "rss_mib") for group, value in row[key].items()}
    nested |= {f"{step}_ms": value for step, value in row.get("stages", {}).items()}
    found = {**row, **nested, **{key: conditions[key] for key in ("gpu", "commit")}}
    joined = {key: ";".join(map(str, row[key])) for key in ("gpu_busy", "gpu_memory_mib")}
    return {column: {**found, **joined}.get(column) for column in (*COLUMNS, *OF_LAYOUTS)}


def best(rows: Sequence[Row]) -> list[Row]:
    """For each target, load and layout: the closed loop's row with the most requests/s and no wrong answer."""
    found: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row["target"], row["load"], layout_words(row))
        sound = row["loop"] == "closed" and not row.get("answers_wrong")
        if sound and (key not in found or row["requests_per_s"] > found[key]["requests_per_s"]):
            found[key] = row
    return list(found.values())


def table(content: Document) -> str:
    """Markdown: the best point of each target, then the remarks."""
    found = best(content["rows"])
    extra = [EXTRA[0]] if any(row.get("share_of_engine") for row in found) else []
    extra += EXTRA[1:] if any(map(layout_words, found)) else []
    head = ["target", "load", "workers", "clients", "requests/s", "items/s", "p50 ms", "p99 ms", "errors", "no-op/s"]
    lines = [_line([*head, *extra]), "|---|---|" + "---:|" * (len(head) - 2 + len(extra))]
    lines += [_line([*cells(row), *(_extra_cell(row, name) for name in extra)]) for row in found]
    lines += [f"- {remark}" for remark in [*remarks(content), *notes(content)]]
    return "\n".join(lines)


def cells(row: Row) -> Iterator[str]:
    """A row's cells of the table."""
    yield from (row["target"], row["load"])
    yield from (str(row["workers"] or "-"), str(row["clients"] or "-"))
    yield from (f"{row['requests_per_s']:,.0f}", f"{row['items_per_s']:,.0f}")
    yield from ("-" if row[key] is None else f"{row[key]:,.1f}" for key in ("p50_ms", "p99_ms"))
    yield f"{row['errors']:,}"
    noop = row.get("noop_requests_per_s")
    yield f"{noop:,.0f}" if noop else "-"


def _extra_cell(row: Row, name: str) -> str:
    """A cell of a column that the table has only if some row has a value for it."""
    if name == "layout":
        return layout_words(row) or "-"
    if name == "at its limit":
        return row.get("limited_by") or "-"
    share = row.get("share_of_engine" if name == "of the engine" else "share_of_linear")
    return f"{share:.0%}" if share else "-"


def _line(cells_of_line: Sequence[str]) -> str:
    return f"| {' | '.join(cells_of_line)} |"


def remarks(content: Document) -> list[str]:
    """Reasons not to trust rows, and what was not run."""
    found = []
    for row in content["rows"]:
        where = f"{words}, " if (words := layout_words(row)) else ""
        where += f"{row['workers']} worker{'s' if row['workers'] != 1 else ''}, " if row["workers"] else ""
        where += f"{row['clients']} clients" if row["clients"] else f"{row['rate']:,.0f} requests/s"
        found += [f"{row['target']} ({where}): {trouble}" for trouble in troubles(row)]
    if disturbed_rows := [row for row in content["rows"] if disturbed(row)]:
        most = max(row["cores"]["elsewhere"] for row in disturbed_rows)
        points = f"{len(disturbed_rows)} of {len(content['rows'])} points"
        found.append(f"other programs kept up to {most:.1f} cores busy meanwhile ({points}): figures may be too low")
    skipped = [*content["skipped"], *completeness.missing(content)]
    return [*found, *(f"not run: {item['name']}: {item['reason']}" for item in skipped)]


def notes(content: Document) -> list[str]:
    """What else is to be known: the engines' own speed, and whose times of stages are missing, and why."""
    found = [engine_alone.line(name, one) for name, one in content.get("engine_alone", {}).items()]
    return [*found, *stage_notes(content["rows"])]


def stage_notes(rows: Sequence[Row]) -> list[str]:
    """For each target without times of stages, why; how many points it concerns."""
    missing = Counter((row["target"], reason) for row in rows if (reason := stages.missing(row)))
    return [
        f"{target}: the stages of a batch are not known at {count} point{'s' if count > 1 else ''}: {reason}"
        for (target, reason), count in missing.items()
    ]


def read(file: Path) -> dict[str, Any]:
    """An earlier run's JSON. Raises ValueError for anything else."""
    if file.suffix != ".json":
        raise ValueError(f"{file}; wanted: the FILE.json of an earlier run")
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"conditions", "rows", "skipped"} <= content.keys():
        raise ValueError(f"{file} was not written by scripts/bench_serving")
    return content
