"""The charts of a benchmark of serving, as SVG to put into a page."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from serving_bench import stages
from serving_bench.rows import Row, is_late, layout_words

PARTS = {
    "outside_ms": "outside TorchServe: HTTP, load generator",
    "around_ms": "before and after the handler",
    "queue_ms": "waiting for a worker and for its batch",
    "exchange_ms": "between TorchServe and its worker",
    **stages.NAMES,
    "rest_ms": "rest of the handler",
    "whole_ms": "handler; its stages are not known",
}
GROUPS = {
    "java": "TorchServe (Java)",
    "workers": "workers",
    "server": "server",
    "other": "other",
    "generator": "load generator",
    "elsewhere": "other programs",
}
MOST_BARS = 16
MOST_POINTS = 32
GREY = "0.6"


def draw(rows: Sequence[Row], cores: int) -> dict[str, str]:
    """SVG by title, for rows that share a load. Raises ImportError without matplotlib."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: it can be read aloud, searched, and is small
    matplotlib.rcParams["svg.hashsalt"] = "serving"  # the same figures give the same file
    plt: Any = import_module("matplotlib.pyplot")
    closed = [row for row in rows if row["loop"] == "closed"]
    bars, all_points = _bars(rows), _points(rows)
    cut = _cut_note(rows)
    pictures: dict[str, Callable[[], Any]] = {
        "Throughput": lambda: _throughput(plt, closed),
        "Latency: half of all answers came within the solid line, 99 of 100 within the dashed one": lambda: _latency(
            plt, closed
        ),
        f"Where the time of a request goes, in the mean{cut}": lambda: _parts(plt, all_points),
        f"CPU cores kept busy, of {cores}": lambda: _cores(plt, bars, cores),
    }
    found = {}
    for title, make in pictures.items():
        figure = make()
        if figure is not None:
            found[title] = _svg(figure)
            plt.close(figure)
    return found


def series(rows: Sequence[Row]) -> dict[tuple[str, Any], list[Row]]:
    """Rows that differ only in the number of clients or the rate, by name."""
    found: dict[tuple[str, Any], list[Row]] = {}
    for row in rows:
        key = (row["target"], row["workers"], row["batch_size"], row["max_batch_delay_ms"], layout_words(row))
        found.setdefault((_name(row, rows), key), []).append(row)
    return found


def _name(row: Row, among: Sequence[Row]) -> str:
    """ "digits, 2 workers", and batch size and delay if those vary."""
    layout = f", {words}" if (words := layout_words(row)) else ""
    if row["kind"] == "no-op":
        return f"no-op{layout}: the most that can be had here"
    workers = f", {row['workers']} worker{'s' if row['workers'] > 1 else ''}" if row["workers"] else ""
    extra = ""
    for key, words in (("batch_size", "batch {}"), ("max_batch_delay_ms", "delay {} ms")):
        if len({other[key] for other in among if other["target"] == row["target"]}) > 1:
            extra += f", {words.format(row[key])}"
    return f"{row['target']}{layout}{workers}{extra}"


def _axes(plt: Any, height: float = 4.2) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _over_clients(axes: Any, rows: Sequence[Row]) -> None:
    clients = sorted({row["clients"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(clients, [str(count) for count in clients])
    axes.minorticks_off()
    axes.set_xlabel("clients, each with one request open")


def _throughput(plt: Any, rows: Sequence[Row]) -> Any:
    if len({row["clients"] for row in rows}) < 2:
        return _bare(plt, [row for row in rows if row["kind"] != "no-op"])
    figure, axes = _axes(plt)
    top = 1.15 * max((row["items_per_s"] for row in rows if row["kind"] != "no-op"), default=0)
    for (name, _), line in series(rows).items():
        noop = line[0]["kind"] == "no-op"
        if noop and top < min(row["items_per_s"] for row in line):
            name += " (above the picture)"
        style = {"color": GREY, "linestyle": "--"} if noop else {"marker": "o"}
        axes.plot([row["clients"] for row in line], [row["items_per_s"] for row in line], label=name, **style)
    _over_clients(axes, rows)
    axes.set_ylabel(f"{rows[0]['unit']} per second")
    axes.set_ylim(0, top or None)  # the no-op may lie far above
    _legend(figure)
    return figure


def _bare(plt: Any, rows: Sequence[Row]) -> Any:
    """Draw bars instead of lines, for one number of clients; None for a single row."""
    if len(rows) < 2:
        return None
    rows = rows[:MOST_BARS]
    return _stacked(
        plt, rows, {"items_per_s": "at as many clients"}, lambda row: row, f"{rows[0]['unit']} per second"
    )


def _latency(plt: Any, rows: Sequence[Row]) -> Any:
    rows = [row for row in rows if row["kind"] != "no-op" and row["p99_ms"]]
    if len({row["clients"] for row in rows}) < 2:
        return None
    figure, axes = _axes(plt)
    for (name, _), line in series(rows).items():
        clients = [row["clients"] for row in line]
        drawn = axes.plot(clients, [row["p50_ms"] for row in line], marker="o", label=name)[0]
        axes.plot(clients, [row["p99_ms"] for row in line], marker="o", linestyle="--", color=drawn.get_color())
    _over_clients(axes, rows)
    axes.set_yscale("log")
    plain: Any = import_module("matplotlib.ticker").FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain)
    axes.tick_params(axis="y", which="minor", labelsize="x-small")
    axes.set_ylabel("milliseconds (logarithmic scale)")
    _legend(figure)
    return figure


def _bars(rows: Sequence[Row]) -> list[Row]:
    """For each target and setting: the fastest point of the closed loop, and all points of the open loop."""
    found: list[Row] = []
    for line in series([row for row in rows if row["kind"] != "no-op"]).values():
        closed = [row for row in line if row["loop"] == "closed"]
        found += [max(closed, key=lambda row: float(row["requests_per_s"]))] if closed else []
        found += [row for row in line if row["loop"] == "open"]
    return found[:MOST_BARS]


def _points(rows: Sequence[Row]) -> list[Row]:
    """All points but the no-op's; those of `_bars` if there are more than MOST_POINTS."""
    found = [row for row in rows if row["kind"] != "no-op"]
    return found if len(found) <= MOST_POINTS else _bars(rows)


def _cut_note(rows: Sequence[Row]) -> str:
    """What the picture of all points leaves out, if anything; "" otherwise."""
    there, drawn = sum(row["kind"] != "no-op" for row in rows), len(_points(rows))
    return f"; {drawn} of {there} points: the fastest of each setting, and open loops" if drawn < there else ""


def parts_of(row: Row) -> dict[str, float]:
    """The parts of a request's time in milliseconds, by keys of PARTS; without those that are not known.

    The stages are those of the mean batch, which all of its requests wait for.
    """
    found = {key: float(row[key]) for key in ("outside_ms", "queue_ms", "exchange_ms") if row.get(key) is not None}
    known, handler = row.get("stages") or {}, row.get("handler_ms")
    if handler is None:
        handler = sum(known.values()) if known else None
    if handler is None:
        return found if "queue_ms" in found else {}
    if "queue_ms" not in found and row.get("mean_ms") is not None:
        found["around_ms"] = max(0.0, row["mean_ms"] - handler)
    rest = max(0.0, handler - sum(known.values()))
    return {**found, **known, "rest_ms" if known else "whole_ms": rest}


def _parts(plt: Any, rows: Sequence[Row]) -> Any:
    rows = [row for row in rows if parts_of(row)]
    if not rows:
        return None
    others = {key: key for row in rows for key in row.get("stages") or {} if key not in stages.NAMES}
    return _stacked(plt, rows, {**PARTS, **others}, parts_of, "milliseconds per request")


def _cores(plt: Any, rows: Sequence[Row], cores: int) -> Any:
    if not rows:
        return None
    figure = _stacked(plt, rows, GROUPS, lambda row: row["cores"], "cores")
    figure.axes[0].axvline(cores, color="black", linewidth=1)
    return figure


def _stacked(
    plt: Any, rows: Sequence[Row], parts: Mapping[str, str], read: Callable[[Row], Mapping[str, Any]], unit: str
) -> Any:
    figure, axes = _axes(plt, 1.4 + 0.42 * len(rows))
    names = [_bar_name(row, rows) for row in rows]
    palette: Any = import_module("matplotlib").colormaps["tab20" if len(parts) > 10 else "tab10"]
    left = [0.0] * len(rows)
    for index, (key, label) in enumerate(parts.items()):
        values = [float(read(row).get(key) or 0) for row in rows]
        if any(values):
            axes.barh(range(len(rows)), values, left=left, label=label, color=palette(index))
        left = [before + value for before, value in zip(left, values, strict=True)]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    _legend(figure)
    return figure


def _bar_name(row: Row, rows: Sequence[Row]) -> str:
    loop = f"{row['clients']} clients" if row["clients"] else f"{row['rate']:,.0f} requests/s asked"
    late = f" (sent {row['late_p99_ms']:,.0f} ms late)" if is_late(row) else ""
    return f"{_name(row, rows)}\n{loop}{late}"


def _legend(figure: Any) -> None:
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)


def _svg(figure: Any) -> str:
    with io.StringIO() as stream:
        figure.savefig(stream, format="svg", metadata={"Date": None})
        text = stream.getvalue()
    return text[text.index("<svg") :]
