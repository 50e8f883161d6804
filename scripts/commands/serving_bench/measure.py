"""Measure one point of a benchmark: put a load on a server, and make a row of all that is known afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.errors import ServerError

from serving_bench import rows, scaling, stages
from serving_bench.answer_comparison import agree
from serving_bench.engine_speed import EngineSpeed
from serving_bench.generator import Endpoint, Generator, GeneratorError, Load, LoadResult
from serving_bench.layouts import Layout
from serving_bench.progress import Progress
from serving_bench.prometheus import MetricChange
from serving_bench.reference_answers import AnswerChecker, ReferenceAnswers
from serving_bench.resource_usage import GpuMonitor, Groups, ProcessMonitor
from serving_bench.rows import Row, rounded
from serving_bench.stream_generator import StreamGenerator

OPEN_CONNECTIONS = 1024  # the most that an open loop opens, per GPU


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
        """Its processes on this machine, by what they are: "java", "workers", "server", "other"."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Counters and histograms of the model, by name; empty if the server has none."""
        ...


@dataclass(frozen=True)
class Setting:
    """How a model is served, as TorchServe describes it; None if unknown."""

    workers: int | None = None
    batch_size: int | None = None
    delay_ms: int | None = None


@dataclass
class Bench:
    """What all points share, and the rows so far.

    show: called with each line for a person. save: called after each row. noop: requests/s of the no-op, by the
    load's name and the number of clients.
    """

    generator: Generator
    open_loop: StreamGenerator
    gpus: GpuMonitor
    seconds: float
    warm_up: float
    show: Callable[[str], None]
    save: Callable[[Bench], None]
    rows: list[Row] = field(default_factory=list)
    skipped: list[Row] = field(default_factory=list)
    noop: dict[tuple[str, int], float] = field(default_factory=dict)
    references: dict[str, ReferenceAnswers] = field(default_factory=dict)  # of the last archive, by load's name
    engine: EngineSpeed | None = None  # as it was given, for all archives
    layout: Layout = field(default_factory=Layout)
    progress: Progress = field(default_factory=Progress)
    idle_mib: float | None = None  # GPU memory in use before the first model is loaded

    def begin(self, points: int) -> str:
        """Start to count points. Returns a line for a person."""
        return self.progress.begin(points, self.warm_up + self.seconds)

    def use(self, layout: Layout) -> None:
        """Measure this layout from now on.

        The no-op is measured again unless only MPS differs: it computes nothing on a GPU.
        """
        if (layout.devices, layout.servers) != (self.layout.devices, self.layout.servers):
            self.noop.clear()
        self.layout, self.gpus.only = layout, layout.devices

    def note_idle_memory(self) -> None:
        """Note how much GPU memory is in use now, before any model is loaded.

        It is too late for that after a model's end: its workers take seconds to free their memory.
        """
        self.idle_mib = self.gpus.memory_mib()

    def mib_per_worker(self, workers: int) -> float | None:
        """Return the GPU memory (MiB) that each of the workers has taken before the load; None without GPUs.

        Later growth is in the row's gpu_memory_mib.
        """
        taken = self.gpus.memory_mib()
        return None if taken is None or self.idle_mib is None else round((taken - self.idle_mib) / workers)

    def warm_up_java(self, subject: Subject, load: Load, clients: int) -> None:
        """Send many requests before the first point: Java compiles what runs often, and is slow until then."""
        self.generator.closed(subject.endpoint(), load, clients, self.warm_up)

    def closed(
        self,
        subject: Subject,
        load: Load,
        reference: ReferenceAnswers | None,
        setting: Setting,
        clients: int,
        **more: Any,
    ) -> Row:
        """Measure a point of a closed loop. reference: None: answers are not checked. more: further columns."""
        row: Row = {"loop": "closed", "clients": clients, "rate": None}

        def run(seconds: float) -> LoadResult:
            return self.generator.closed(subject.endpoint(), load, clients, seconds)

        return self._measure(subject, load, reference, setting, {**row, **more}, run)

    def open(
        self,
        subject: Subject,
        load: Load,
        reference: ReferenceAnswers | None,
        setting: Setting,
        rate: float,
        **more: Any,
    ) -> Row:
        """Measure a point of an open loop, at `rate` requests/s."""
        row: Row = {"loop": "open", "clients": None, "rate": rounded(rate)}

        def run(seconds: float) -> LoadResult:
            connections = OPEN_CONNECTIONS * self.layout.factor
            return self.open_loop.open(subject.endpoint(), load, rate, connections, seconds)

        return self._measure(subject, load, reference, setting, {**row, **more}, run)

    def skip(self, name: str, reason: str) -> None:
        """Show and keep the reason for which something was not measured."""
        self.skipped.append({"name": name, "reason": reason})
        self.show(f"{name}: SKIPPED, {reason}")
        self.save(self)

    def _measure(
        self,
        subject: Subject,
        load: Load,
        reference: ReferenceAnswers | None,
        setting: Setting,
        row: Row,
        run: Callable[[float], LoadResult],
    ) -> Row:
        checked = self._warm_up(subject, load, reference, run)
        before = subject.metrics()
        with ProcessMonitor(subject.groups(), lambda: subject.metrics().get("HandlerTime")) as usage:
            result = run(self.seconds)
        change = MetricChange(before, subject.metrics())
        if checked is not None:
            checked.once()
        row = {
            "target": subject.name,
            "kind": subject.kind,
            **self.layout.columns(),
            "load": load.name,
            "unit": load.unit,
            "workers": setting.workers,
            "batch_size": setting.batch_size,
            "max_batch_delay_ms": setting.delay_ms,
            **row,
            **rows.of_load(result, load),
            **rows.of_request_time(change, usage, row["clients"], result),
            **stages.of(change, subject.kind),
            **rows.of_resources(usage, result, self.gpus),
            **self._compared(load, result, row["clients"], subject.kind),
            **rows.of_answers(checked),
            "agrees": self._agreement(load, reference) if subject.kind == "peer" else None,
        }
        row["share_of_linear"] = rounded(scaling.share_of_linear(row, self.rows, self.layout.first))
        row["limited_by"] = scaling.limited_by(row, len(os.sched_getaffinity(0)), result.threads)
        row["share_of_engine"] = self.engine.share(row) if self.engine else None
        self.rows.append(row)
        self.show(f"{self.progress.finished()}{rows.line_of(row)}")
        self.save(self)
        return row

    def _warm_up(
        self, subject: Subject, load: Load, reference: ReferenceAnswers | None, run: Callable[[float], LoadResult]
    ) -> AnswerChecker | None:
        """Run the load for a while. Answers are checked now, so that the checks do not disturb the point itself."""
        if reference is None:
            run(self.warm_up)
            return None
        with AnswerChecker(subject.endpoint(), load, reference) as checker:
            run(self.warm_up)
        return checker

    def _compared(self, load: Load, result: LoadResult, clients: int | None, kind: str) -> Row:
        if kind == "no-op":
            self.noop[load.name, clients or 0] = result.requests_per_s
            return {}
        known = [rate for (name, at), rate in self.noop.items() if name == load.name and clients in (None, at)]
        noop = max(known, default=None)
        headroom = noop / result.requests_per_s if noop and result.requests_per_s else None
        return {"noop_requests_per_s": rounded(noop), "headroom": rounded(headroom)}

    def _agreement(self, load: Load, reference: ReferenceAnswers | None) -> str | None:
        """How many of a peer's reference answers mean the same as the archive's: "2 of 2"."""
        if reference is None or load.name not in self.references:
            return None
        pairs = zip(reference.answers, self.references[load.name].answers, strict=True)
        found = [agreement for pair in pairs if (agreement := agree(*pair)) is not None]
        return f"{sum(found)} of {len(found)}" if found else None


def reason_of(error: Exception) -> str:
    """Why something was not measured: the error's message, with its name if it is not one of this program's."""
    own = isinstance(error, (ServerError, GeneratorError, OSError)) and str(error)
    return str(error) if own else f"{type(error).__name__}: {error}".rstrip(": ")
