"""One point of a benchmark: a load on a server, and all that is known of it afterwards, as a row."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving_bench.answers import agree
from serving_bench.checking import Checker, Lone
from serving_bench.load import Counted, Endpoint, Generator, Load
from serving_bench.prometheus import Spans
from serving_bench.streams import Streams
from serving_bench.watch import Gpus, Groups, Watch

Row = dict[str, Any]

QUEUE_FULL = "503"
MOST_ELSEWHERE = 0.1  # of the cores: what other programs may take before it is said
HEADROOM = 1.25  # a no-op that is not that much faster proves nothing
OPEN_CONNECTIONS = 1024  # of an open loop
OF_TORCHSERVE = ("BatchSize", "BatchInputs", "BatchTime")


class Subject(Protocol):
    """A server that answers the load."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str:
        """ "archive", "no-op", "address" or "peer"."""
        ...

    def endpoint(self) -> Endpoint: ...
    def groups(self) -> Groups:
        """Its processes on this machine, by what they are."""
        ...

    def figures(self) -> Mapping[str, float]:
        """Counters and histograms of the model, by name; empty if the server has none."""
        ...


@dataclass(frozen=True)
class Setting:
    """How a model is served. batch_size, delay_ms: as TorchServe describes the model; None if unknown."""

    workers: int | None = None
    batch_size: int | None = None
    delay_ms: int | None = None


@dataclass
class Bench:
    """What all points share, and the rows so far; `save` is called after each, `say` with each line for a person."""

    generator: Generator
    open_loop: Streams
    gpus: Gpus
    seconds: float
    warm_up: float
    say: Callable[[str], None]
    save: Callable[[Bench], None]
    rows: list[Row] = field(default_factory=list)
    skipped: list[Row] = field(default_factory=list)
    noop: dict[tuple[str, int], float] = field(default_factory=dict)
    lone: dict[str, Lone] = field(default_factory=dict)  # of the last archive, by load
    engine_items_per_s: float | None = None

    def heat(self, subject: Subject, load: Load, clients: int) -> None:
        """Many requests before the first point: Java compiles what runs often, and is slow until then."""
        self.generator.closed(subject.endpoint(), load, clients, self.warm_up)

    def closed(
        self, subject: Subject, load: Load, lone: Lone | None, setting: Setting, clients: int, **more: Any
    ) -> Row:
        """A point of a closed loop. lone: None leaves answers unchecked. more: of the row."""
        row: Row = {"loop": "closed", "clients": clients, "rate": None}

        def run(seconds: float) -> Counted:
            return self.generator.closed(subject.endpoint(), load, clients, seconds)

        return self._measure(subject, load, lone, setting, {**row, **more}, run)

    def open(
        self, subject: Subject, load: Load, lone: Lone | None, setting: Setting, rate: float, **more: Any
    ) -> Row:
        """A point of an open loop, at `rate` requests/s."""
        row: Row = {"loop": "open", "clients": None, "rate": _rounded(rate)}

        def run(seconds: float) -> Counted:
            return self.open_loop.open(subject.endpoint(), load, rate, OPEN_CONNECTIONS, seconds)

        return self._measure(subject, load, lone, setting, {**row, **more}, run)

    def skip(self, name: str, reason: str) -> None:
        """Say and keep why something was not measured."""
        self.skipped.append({"name": name, "reason": reason})
        self.say(f"{name}: SKIPPED, {reason}")

    def _measure(
        self,
        subject: Subject,
        load: Load,
        lone: Lone | None,
        setting: Setting,
        row: Row,
        run: Callable[[float], Counted],
    ) -> Row:
        checked = self._warm_up(subject, load, lone, run)
        before = subject.figures()
        with Watch(subject.groups(), lambda: subject.figures().get("HandlerTime")) as watch:
            counted = run(self.seconds)
        spans = Spans(before, subject.figures())
        if checked is not None:
            checked.once()
        row = {
            "target": subject.name,
            "kind": subject.kind,
            "load": load.name,
            "unit": load.unit,
            "workers": setting.workers,
            "batch_size": setting.batch_size,
            "max_batch_delay_ms": setting.delay_ms,
            **row,
            **_of_counted(counted, load),
            **_of_spans(spans, watch, row["clients"], counted),
            **_of_use(watch, counted, self.gpus),
            **self._compared(load, counted, row["clients"], subject.kind),
            **_of_answers(checked),
            "agrees": self._agreement(load, lone) if subject.kind == "peer" else None,
        }
        self.rows.append(row)
        self.say(line_of(row))
        self.save(self)
        return row

    def _warm_up(
        self, subject: Subject, load: Load, lone: Lone | None, run: Callable[[float], Counted]
    ) -> Checker | None:
        """Run the load for a while; answers are checked beside it, so that the point itself is undisturbed."""
        if lone is None:
            run(self.warm_up)
            return None
        with Checker(subject.endpoint(), load, lone) as checker:
            run(self.warm_up)
        return checker

    def _compared(self, load: Load, counted: Counted, clients: int | None, kind: str) -> Row:
        if kind == "no-op":
            self.noop[load.name, clients or 0] = counted.requests_per_s
            return {}
        known = [rate for (name, at), rate in self.noop.items() if name == load.name and clients in (None, at)]
        noop = max(known, default=None)
        headroom = noop / counted.requests_per_s if noop and counted.requests_per_s else None
        items = counted.requests_per_s * load.items
        return {
            "noop_requests_per_s": _rounded(noop),
            "headroom": _rounded(headroom),
            "share_of_engine": _rounded(items / self.engine_items_per_s) if self.engine_items_per_s else None,
        }

    def _agreement(self, load: Load, lone: Lone | None) -> str | None:
        """How many of a peer's lone answers mean the same as the archive's: "2 of 2"."""
        if lone is None or load.name not in self.lone:
            return None
        pairs = zip(lone.answers, self.lone[load.name].answers, strict=True)
        found = [said for pair in pairs if (said := agree(*pair)) is not None]
        return f"{sum(found)} of {len(found)}" if found else None


def _of_counted(counted: Counted, load: Load) -> Row:
    quantiles = {f"{key}_ms": _rounded(counted.latency_ms.get(key)) for key in ("p50", "p90", "p99", "p999", "max")}
    return {
        "generator": counted.generator,
        "seconds": _rounded(counted.seconds),
        "requests_per_s": _rounded(counted.requests_per_s),
        "items_per_s": _rounded(counted.requests_per_s * load.items),
        **quantiles,
        "errors": counted.errors,
        "statuses": dict(counted.statuses),
        "failures": dict(counted.failures),
        "late_p99_ms": _rounded(counted.late_ms.get("p99")),
    }


def _of_spans(spans: Spans, watch: Watch, clients: int | None, counted: Counted) -> Row:
    """Where a request's time goes, in the mean and in milliseconds; parts that the server does not tell are None.

    TorchServe's latency runs from the request read to the answer handed to the network; its queue's part of it until
    a batch is complete. The handler's is that of the mean batch.
    """
    mean = counted.latency_ms.get("mean")
    if clients and counted.requests_per_s:
        mean = clients / counted.requests_per_s * 1e3  # Little's law: each client always has one request open
    inside = spans.per_request_ms("ts_inference_latency_microseconds")
    queue = spans.per_request_ms("ts_queue_latency_microseconds")
    handler = spans.mean("BatchTime")
    if handler is None and watch.polled:
        handler = sum(watch.polled) / len(watch.polled)  # a gauge of the last batch, read each second
    rest = inside - queue - handler if None not in (inside, queue, handler) else None  # type: ignore[operator]
    stages = [name for name in spans.histograms() if name not in OF_TORCHSERVE]
    return {
        "mean_ms": _rounded(mean),
        "mean_batch": _rounded(spans.mean("BatchSize")),
        "mean_batch_items": _rounded(spans.mean("BatchInputs")),
        "outside_ms": _rounded(max(0.0, mean - inside)) if mean is not None and inside is not None else None,
        "queue_ms": _rounded(queue),
        "handler_ms": _rounded(handler),
        "exchange_ms": _rounded(max(0.0, rest)) if rest is not None else None,
        "stages": {name: _rounded(spans.mean(name)) for name in stages},
    }


def _of_use(watch: Watch, counted: Counted, gpus: Gpus) -> Row:
    cores = watch.cores()
    cores["generator"] = counted.cpu_seconds / (watch.end - watch.start)
    machine = cores.pop("machine")
    cores["elsewhere"] = max(0.0, machine - sum(cores.values()))
    of_gpus = gpus.between(watch.start, watch.end)
    return {
        "cores": {group: _rounded(value) for group, value in cores.items()},
        "rss_mib": {group: _rounded(value) for group, value in watch.rss_mib.items()},
        "gpu_busy": [_rounded(busy) for busy, _ in of_gpus.values()],
        "gpu_memory_mib": [_rounded(memory) for _, memory in of_gpus.values()],
    }


def _of_answers(checked: Checker | None) -> Row:
    if checked is None:
        return {"answers_right": None, "answers_wrong": None, "wrong": None}
    return {
        "answers_right": checked.right,
        "answers_wrong": len(checked.wrong),
        "wrong": checked.wrong[0] if checked.wrong else None,
    }


def disturbed(row: Mapping[str, Any]) -> bool:
    """Whether other programs of the machine took more of its CPU than a quiet machine's do."""
    known = "java" in row["cores"] or "server" in row["cores"]
    return known and (row["cores"].get("elsewhere") or 0) > MOST_ELSEWHERE * (os.cpu_count() or 1)


def line_of(row: Mapping[str, Any]) -> str:
    """One row for a person at a terminal."""
    loop = f"{row['clients']} clients" if row["clients"] else f"at {row['rate']:,.0f} requests/s"
    workers = f" {row['workers']} worker{'s' if row['workers'] > 1 else ''}" if row["workers"] else ""
    batch = f", batches of {row['mean_batch']:.1f}" if row["mean_batch"] else ""
    rates = f"{row['requests_per_s']:,.0f} requests/s"
    if row["items_per_s"] != row["requests_per_s"]:
        rates += f", {row['items_per_s']:,.0f} {row['unit']}/s"
    cores = " + ".join(f"{group} {value:.1f}" for group, value in row["cores"].items() if value >= 0.05)
    gpus = f", GPU {'/'.join(f'{busy:.0%}' for busy in row['gpu_busy'])}" if row["gpu_busy"] else ""
    return (
        f"{row['target']}{workers}, {loop}: {rates}; p50 {_ms(row['p50_ms'])}, p99 {_ms(row['p99_ms'])} ms"
        f"{batch}; cores: {cores}{gpus}{_troubles(row)}"
    )


def troubles(row: Mapping[str, Any]) -> list[str]:
    """What takes a row's worth away, in words."""
    found = []
    if row["errors"]:
        kinds = {**{k: n for k, n in row["statuses"].items() if not k.startswith("2")}, **row["failures"]}
        found.append(f"{row['errors']:,} ERRORS ({', '.join(f'{kind}: {count:,}' for kind, count in kinds.items())})")
        if QUEUE_FULL in kinds:
            found[-1] += ", its queue was full: fewer clients, or --setting job_queue_size=N"
    if row.get("answers_wrong"):
        found.append(
            f"{row['answers_wrong']} WRONG ANSWERS beside {row['answers_right']} right ones: it {row['wrong']}"
        )
    if (headroom := row.get("headroom")) is not None and headroom < HEADROOM:
        found.append(f"the no-op is only {headroom:.2f} times as fast: the front end or the generator limits")
    return found


def _troubles(row: Mapping[str, Any]) -> str:
    return "".join(f"; {said}" for said in troubles(row))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _rounded(value: float | None) -> float | None:
    """To five significant digits."""
    return None if value is None else float(f"{value:.5g}")
