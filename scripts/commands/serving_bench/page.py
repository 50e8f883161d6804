"""A benchmark of serving as one self-contained HTML page: charts, tables, and what they mean."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pictures import INSTALL

from serving_bench import charts, engine_alone, report, stages
from serving_bench.rows import Row, is_late, layout_words

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1.5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.25rem; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; background: #f4f4f4; }
td:first-child, th:first-child { text-align: left; }
tr.noop td { color: #777; } tr.bad td { background: #fde8e8; } tr.late td { background: #fdf6d8; }
table.words td { text-align: left; white-space: normal; vertical-align: top; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } svg { width: 100%; height: auto; }
.bad { background: #fde8e8; padding: 0.5rem 1rem; } .good { background: #e8f5e8; padding: 0.5rem 1rem; }
dt { font-weight: 600; } dd { margin: 0 0 0.5rem 0; }
"""
DEEP = 2  # names before the last one
DETAILS = {  # parts of the JSON, and what they are called
    "conditions": "Machine and versions",
    "settings": "Settings of the run",
    "archives": "Archives",
    "engine_alone": "Engines alone",
}
COLUMNS = {
    "target": "served",
    "gpus": "GPUs",
    "servers": "servers",
    "mps": "MPS",
    "workers": "workers",
    "workers_per_gpu": "workers on each GPU",
    "batch_size": "most in a batch",
    "load_of": "clients, or requests/s asked",
    "requests_per_s": "requests/s",
    "items_per_s": "items/s",
    "share_of_linear": "of linear",
    "p50_ms": "p50 ms",
    "p90_ms": "p90 ms",
    "p99_ms": "p99 ms",
    "p999_ms": "p99.9 ms",
    "errors": "errors",
    "answers": "answers right",
    "agrees": "as the archive",
    "late_p99_ms": "sent late, p99 ms",
    "mean_batch": "mean batch",
    "outside_ms": "outside TorchServe ms",
    "queue_ms": "queue ms",
    "exchange_ms": "to and from the worker ms",
    "handler_ms": "handler ms",
    "stages": "",  # a column for each
    "gpu": "GPU busy",
    "gpu_mib_per_worker": "GPU MiB per worker",
    "headroom": "no-op is faster",
    "share_of_engine": "of the engine's speed",
    "limited_by": "at its limit",
}
MEANING = {
    "clients": "Each sends a request, waits for its answer, and sends the next: a closed loop. More clients have "
    "more requests open, so throughput grows until something is busy all the time; then only the waiting grows.",
    "requests/s asked": "An open loop: requests come at random moments, so many per second, whether or not earlier "
    "ones are answered, as from many people who do not know of each other. Latencies count from the moment at which "
    "a request was due.",
    "p50, p90, p99, p99.9": "Half of all answers came within p50 milliseconds, 99 of 100 within p99.",
    "errors": "Requests that got another status than 2xx, or no answer.",
    "answers right": "Answers, during the load and after it, that mean the same as the answer to that request alone.",
    "as the archive": "For a peer: how many of its answers have the archive's likeliest label, or its vector.",
    "mean batch": "Requests that TorchServe handed to the handler together.",
    "sent late": "How much later than due an open loop sent (99 of 100 requests: less). The latencies contain it. "
    "A row is yellow if it is more than a quarter of the p99: the latencies are then the load generator's too.",
    "outside TorchServe": "The mean latency less TorchServe's own time: connection, HTTP, load generator.",
    "queue": "From the moment at which the request was read until its batch is complete.",
    "to and from the worker": "The rest of TorchServe's time: between its Java process and the worker.",
    "handler": "Mean time of a batch in the worker. The stages that follow are its parts, each of the mean batch.",
    **{stages.NAMES[stage]: meaning for stage, meaning in stages.MEANING.items()},
    "of the engine's speed": "items/s divided by those of the same engine alone: same inputs, in large batches, on "
    "the device before the clock starts; for several GPUs times the GPUs in use.",
    "no-op is faster": "A handler that does nothing, with the same bytes in and out, answered so many times as many "
    "requests. A figure near 1 means that TorchServe's front end or the load generator was the limit.",
    "of linear": "items/s divided by what as many GPUs would give if each gave as much as the fewest GPUs did.",
    "at its limit": "What was busy for 90 % of the time or more: all cores, the GPUs, the load generator; or the "
    "front end, if the no-op is less than 1.25 times as fast. A ? means none of these.",
    "GPU busy": "Share of the time in which any kernel ran, as the driver reports it, however small the kernel.",
}


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the page."""
    path.write_text(page(content), encoding="utf-8")


def page(content: Mapping[str, Any]) -> str:
    """The page's HTML."""
    conditions = content["conditions"]
    names = ", ".join(content.get("archives", {})) or "a server"
    title = f"Serving {names}: what a client gets"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(_conditions_line(conditions))}</p>",
        _verdict(content),
        *_engine_lines(content),
        *(_section(load, rows, conditions) for load, rows in _by_load(content["rows"]).items()),
        "<h2>What the figures mean</h2><dl>",
        *(f"<dt>{html.escape(key)}</dt><dd>{html.escape(meaning)}</dd>" for key, meaning in MEANING.items()),
        "</dl>",
        _details(content),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _by_load(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["load"], []).append(row)
    return found


def _conditions_line(conditions: Mapping[str, Any]) -> str:
    gpus = f"{conditions['gpus']} x {conditions['gpu']}" if conditions["gpus"] else "no GPU"
    return (
        f"{conditions['date']}; {gpus}, {conditions['cores']} cores of {conditions['cpu']}; TorchServe "
        f"{conditions['packages']['torchserve']}, Java {conditions['java']}, torch {conditions['torch']}; commit "
        f"{conditions['commit']}. Load by {conditions['generator']}, open loop by {conditions['open_loop']}, on "
        "the same machine unless an address was given."
    )


def _verdict(content: Mapping[str, Any]) -> str:
    """Reasons not to trust the figures, or that there are none."""
    found = report.remarks(content)
    if not found:
        return '<p class="good">No request failed, and all checked answers were right.</p>'
    return f'<div class="bad"><ul>{"".join(f"<li>{html.escape(remark)}</li>" for remark in found)}</ul></div>'


def _engine_lines(content: Mapping[str, Any]) -> list[str]:
    """A paragraph for each engine that ran alone, or did not."""
    lines = [engine_alone.line(name, found) for name, found in content.get("engine_alone", {}).items()]
    return [f"<p>{html.escape(line[:1].upper() + line[1:])}.</p>" for line in lines]


def _section(load: str, rows: Sequence[Row], conditions: Mapping[str, Any]) -> str:
    parts = [f"<h2>{html.escape(load)}</h2>", _best(rows)]
    try:
        drawn = charts.draw(rows, conditions["cores"])
    except ImportError as error:
        drawn = {}
        parts.append(f"<p>No pictures: {html.escape(str(error))}. Run {html.escape(INSTALL)}, then --redraw.</p>")
    parts += [f"<h3>{html.escape(title)}</h3>\n{svg}" for title, svg in drawn.items()]
    parts += [f"<p>{html.escape(note)}.</p>" for note in report.stage_notes(rows)]
    parts += ["<h3>All points</h3>", _table(rows)]
    return "\n".join(parts)


def _best(rows: Sequence[Row]) -> str:
    """One sentence per target."""
    sentences = []
    for row in report.best(rows):
        if row["kind"] != "no-op":
            workers = f" with {row['workers']} worker{'s' if row['workers'] > 1 else ''}" if row["workers"] else ""
            layout = f" ({words})" if (words := layout_words(row)) else ""
            share = f", {row['share_of_engine']:.0%} of the engine's own speed" if row["share_of_engine"] else ""
            sentences.append(
                f"<li><b>{html.escape(row['target'])}{layout}: {row['items_per_s']:,.0f} {row['unit']}/s</b>"
                f"{workers} at {row['clients']} clients{share}; "
                f"half of the answers within {row['p50_ms'] or 0:,.1f} ms, "
                f"99 % within {row['p99_ms'] or 0:,.1f} ms.</li>"
            )
    return f"<ul>{''.join(sentences)}</ul>"


def _table(rows: Sequence[Row]) -> str:
    shown = {key: name for key, name in columns(rows).items() if any(_cell(row, key) for row in rows)}
    head = "".join(f"<th>{html.escape(name)}</th>" for name in shown.values())
    lines = []
    for row in rows:
        kind = "noop" if row["kind"] == "no-op" else "late" if is_late(row) else ""
        kind = "bad" if row["errors"] or row.get("answers_wrong") else kind
        cells = "".join(f"<td>{html.escape(_cell(row, key) or '-')}</td>" for key in shown)
        lines.append(f'<tr class="{kind}">{cells}</tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def columns(rows: Sequence[Row]) -> dict[str, str]:
    """The columns' names by key; a stage has the key "stage NAME"."""
    there = {name for row in rows for name in row.get("stages") or {}}
    names = [*(name for name in stages.NAMES if name in there), *sorted(there - stages.NAMES.keys())]
    found: dict[str, str] = {}
    for key, name in COLUMNS.items():
        of_stages = {f"stage {stage}": f"{stages.NAMES.get(stage, stage)} ms" for stage in names}
        found |= of_stages if key == "stages" else {key: name}
    return found


def _cell(row: Row, key: str) -> str:
    """A cell's text; "" if there is nothing to show."""
    if key == "load_of":
        return f"{row['clients']:,}" if row["clients"] else f"{row['rate']:,.0f}/s"
    if key == "answers":
        right, wrong = row.get("answers_right"), row.get("answers_wrong")
        return "" if right is None else f"{right} of {right + (wrong or 0)}"
    if key == "gpu":
        return ", ".join(f"{busy:.0%}" for busy in row["gpu_busy"])
    stage = key.removeprefix("stage ")
    value = row.get(key) if stage == key else (row.get("stages") or {}).get(stage)
    if value is None or value == "":
        return ""
    if key in ("share_of_engine", "share_of_linear"):
        return f"{value:.0%}"
    if key == "headroom":
        return f"{value:,.1f} x"
    return _number(key, value) if isinstance(value, float) else str(value)


def _number(key: str, value: float) -> str:
    return f"{value:,.0f}" if key.endswith("per_s") and value >= 10 else f"{value:,.1f}"


def _details(content: Mapping[str, Any]) -> str:
    """Conditions, settings and archives, folded away."""
    tables = []
    for part, title in ((part, title) for part, title in DETAILS.items() if content.get(part)):
        lines = [
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>"
            for name, text in _lines_of("", content[part])
        ]
        tables.append(f'<h3>{title}</h3><table class="words"><tbody>{"".join(lines)}</tbody></table>')
    return f"<details><summary>All conditions</summary>{''.join(tables)}</details>"


def _lines_of(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Names and values of everything in a value; the names of what is inside come one after the other.

    What lies deep and has nothing inside is one line.
    """
    is_flat = isinstance(value, Mapping) and not any(isinstance(inner, (Mapping, list)) for inner in value.values())
    if isinstance(value, Mapping) and value and is_flat and name.count(", ") >= DEEP:
        yield name, "; ".join(f"{key}: {_words(inner)}" for key, inner in value.items())
    elif isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _lines_of(f"{name}, {key}" if name else str(key), inner)
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        for number, inner in enumerate(value, 1):
            yield from _lines_of(f"{name}, {number}", inner)
    else:
        yield name, _words(value)


def _words(value: object) -> str:
    """A value without inner names, for a person."""
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == {} else str(value)
