"""The charts of a benchmark of serving, as SVG to put into a page."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from serving_bench.rows import Row, layout_words

PARTS = {
    "outside_ms": "network, HTTP, load generator",
    "queue_ms": "waiting for a worker and for its batch",
    "exchange_ms": "between TorchServe and its worker",
    "handler_ms": "handler",
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
GREY = "0.6"


def draw(rows: Sequence[Row], cores: int) -> dict[str, str]:
    """SVG by title, for rows that share a load. Raises ImportError without matplotlib."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: it can be read aloud, searched, and is small
    matplotlib.rcParams["svg.hashsalt"] = "serving"  # the same figures give the same file
    plt: Any = import_module("matplotlib.pyplot")
    closed = [row for row in rows if row["loop"] == "closed"]
    pictures: dict[str, Callable[[], Any]] = {
        "Throughput": lambda: _throughput(plt, closed),
        "Latency: half of all answers came within the solid line, 99 of 100 within the dashed one": lambda: _latency(
            plt, closed
        ),
        "Where the time of a request goes, in the mean": lambda: _parts(plt, _bars(rows)),
        f"CPU cores kept busy, of {cores}": lambda: _cores(plt, _bars(rows), cores),
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


def _parts(plt: Any, rows: Sequence[Row]) -> Any:
    rows = [row for row in rows if row["queue_ms"] is not None]
    return _stacked(plt, rows, PARTS, lambda row: row, "milliseconds per request") if rows else None


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
    left = [0.0] * len(rows)
    for index, (key, label) in enumerate(parts.items()):
        values = [float(read(row).get(key) or 0) for row in rows]
        if any(values):
            axes.barh(range(len(rows)), values, left=left, label=label, color=f"C{index}")
        left = [before + value for before, value in zip(left, values, strict=True)]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    _legend(figure)
    return figure


def _bar_name(row: Row, rows: Sequence[Row]) -> str:
    loop = f"{row['clients']} clients" if row["clients"] else f"{row['rate']:,.0f} requests/s asked"
    return f"{_name(row, rows)}\n{loop}"


def _legend(figure: Any) -> None:
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)


def _svg(figure: Any) -> str:
    with io.StringIO() as stream:
        figure.savefig(stream, format="svg", metadata={"Date": None})
        text = stream.getvalue()
    return text[text.index("<svg") :]
