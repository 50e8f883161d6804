"""What is measured, in which order: for each archive and setting first the reference answers and the no-op, then each
number of workers with each number of clients."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from server import mps
from server.errors import ServerError

from serving_bench import archives, point_counts, reference_answers
from serving_bench.address import RunningServer
from serving_bench.archives import Archive
from serving_bench.fleet import Fleet
from serving_bench.generator import Endpoint, GeneratorError, Load
from serving_bench.layouts import Layout, environment_of
from serving_bench.measure import Bench, Setting, Subject, reason_of
from serving_bench.peers import Start, stock
from serving_bench.peers.needs import HERE
from serving_bench.plan import PEERS, Plan, per_gpu, why_not_on, without_programs
from serving_bench.progress import beating, waiting
from serving_bench.reference_answers import ReferenceAnswers
from serving_bench.resource_usage import Groups
from serving_bench.rows import rounded

NOOP = "noop"
NOOP_BATCH = 64  # beside servers whose own batch size is unknown


@dataclass(frozen=True)
class Served:
    """A model of a TorchServe that this program started."""

    server: Fleet
    name: str
    kind: str

    def endpoint(self) -> Endpoint:
        self.server.trim_log()
        return self.server.endpoint(self.name)

    def groups(self) -> Groups:
        return self.server.groups()

    def metrics(self) -> Mapping[str, float]:
        return self.server.metrics(self.name)


def run_layouts(
    bench: Bench,
    found: Sequence[Layout],
    settings: Mapping[str, str],
    plan: Plan,
    loads: Sequence[tuple[Archive, Load]],
) -> dict[str, dict[str, Any]]:
    """Measure all archives in each layout. Returns what `run` does, of the first layout.

    settings: for config.properties. A layout that fails is skipped if others follow or have been measured.
    """
    about: dict[str, dict[str, Any]] = {}
    peers_done = set[tuple[object, object]]()
    bench.show(bench.begin(point_counts.of_layouts(found, plan, loads)))
    for at, layout in enumerate(found):
        bench.use(layout)
        noops = {name for name, _ in bench.noop}
        bench.progress.remaining(point_counts.of_layouts(found[at:], plan, loads, peers_done, noops))
        own = per_gpu(plan, layout.factor)
        own = without_programs(own) if (layout.devices, layout.mps) in peers_done else own
        if len(found) > 1:
            bench.show(f"--- {layout}")
        try:
            with (
                mps.chosen(layout.mps) as environment,
                _started(bench, Fleet(layout, settings, environment)) as fleet,
            ):
                about = run(bench, fleet, own, loads, environment) | about
        except (ServerError, GeneratorError, OSError) as error:
            if layout == found[-1] and not bench.rows:
                raise
            bench.skip(str(layout), reason_of(error))
        else:
            peers_done.add((layout.devices, layout.mps))
    bench.progress.remaining(point_counts.of_layouts([], plan, loads))
    return about


@contextlib.contextmanager
def _started(bench: Bench, fleet: Fleet) -> Iterator[Fleet]:
    """Run the fleet, and show lines while it starts. Raises ServerError."""
    bench.show("starting TorchServe")
    with contextlib.ExitStack() as running:
        with beating(bench.show, "starting TorchServe"):
            running.enter_context(fleet)
        yield fleet


def run(
    bench: Bench,
    server: Fleet,
    plan: Plan,
    loads: Sequence[tuple[Archive, Load]],
    environment: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """Measure each archive with its load. Returns each archive's digests and description, by name.

    environment: of peers that are programs of their own.
    """
    found = {}
    bench.note_idle_memory()
    for archive, load in loads:
        about = archive.about()
        for batch_size, delay_ms in product(plan.batch_sizes, plan.delays_ms):
            expected = point_counts.of_subject(plan) + (0 if _has_noop(bench, load) else point_counts.of_noop(plan))
            with bench.progress.expecting(expected):
                description = _archive(
                    bench, server, plan, archive, load, batch_size, delay_ms, "archive", archive.name
                )
            about.setdefault("description", description)
            for peer in plan.peers:
                _peer(bench, server, plan, peer, archive, load, batch_size, delay_ms, environment)
        found[archive.name] = about
    return found


def _peer(
    bench: Bench,
    server: Fleet,
    plan: Plan,
    peer: str,
    archive: Archive,
    load: Load,
    batch_size: int | None,
    delay_ms: int | None,
    environment: Mapping[str, str],
) -> None:
    """Measure the same network and load through another server. One that cannot run is skipped, with the reason.

    Whatever a peer's code raises, the run goes on: it may be another project's fault, and hours were measured before.
    """
    name = f"{peer}-{archive.name}"
    bench.show(f"{name}: {PEERS[peer].WHAT}")
    try:
        with bench.progress.expecting(point_counts.of_peer(peer, bench.layout, plan, archive)):
            if reason := PEERS[peer].objection(archive) or why_not_on(peer, bench.layout):
                bench.skip(name, reason)
            elif peer == stock.NAME:
                made = stock.make(archive, server.store)
                _archive(bench, server, plan, made, load, batch_size, delay_ms, "peer", archive.name)
            else:
                start = Start(
                    name=name,
                    archive=archive,
                    folder=server.folder,
                    python=plan.interpreters.get(peer, HERE).path,
                    load=PEERS[peer].translated(load),
                    workers=1,
                    batch_size=batch_size or archive.batching["batchSize"],
                    delay_ms=delay_ms or archive.batching["maxBatchDelay"],
                    gpus=bench.layout.gpus,
                    environment={**environment, **environment_of(bench.layout.devices)},
                )
                _program(bench, plan, PEERS[peer], start)
    except Exception as error:
        bench.skip(name, reason_of(error))


def _program(bench: Bench, plan: Plan, peer: Any, start: Start) -> None:
    """A peer that is a program of its own, started anew for each count of workers."""
    reference: ReferenceAnswers | None = None
    for workers in plan.workers:
        with peer.served(replace(start, workers=workers, report=waiting(bench.show))) as program:
            reference = reference or reference_answers.ask(program.endpoint(), start.load)
            more: dict[str, Any] = {"answer_bytes": reference.mean_bytes, "same_archive": peer.SAME_ARCHIVE}
            more["archive"] = start.archive.name
            more["gpu_mib_per_worker"] = bench.mib_per_worker(workers)
            more["servers"] = 1 if bench.layout.named else None
            setting = Setting(workers, start.batch_size, start.delay_ms)
            points(bench, plan, program, start.load, reference, setting, more)


def _archive(
    bench: Bench,
    server: Fleet,
    plan: Plan,
    archive: Archive,
    load: Load,
    batch_size: int | None,
    delay_ms: int | None,
    kind: str,
    of: str,
) -> dict[str, Any]:
    """Measure all points of one archive at one batch size and delay. Returns its description.

    of: the name of the archive whose network it has.
    """
    bench.show(f"{archive.name}: registering it")
    started = time.monotonic()  # TorchServe starts the archive's own count of workers at once
    with beating(bench.show, f"{archive.name}: registering it"):
        server.register(archive, batch_size, delay_ms)
    try:
        return _registered(bench, server, plan, Served(server, archive.name, kind), load, of, started)
    finally:
        with contextlib.suppress(OSError, ServerError):
            server.unregister(archive.name)


def _registered(
    bench: Bench, server: Fleet, plan: Plan, served: Served, load: Load, of: str, started: float
) -> dict[str, Any]:
    reference: ReferenceAnswers | None = None
    for workers in plan.workers:
        server.scale(served.name, workers, waiting(bench.show))
        ready_s = time.monotonic() - started
        setting = setting_of(server, served.name, workers)
        if reference is None:
            reference = reference_answers.ask(served.endpoint(), load)
            if served.kind == "archive":
                bench.references[load.name] = reference
            if plan.noop:
                noop(bench, server, plan, load, reference, setting)
        more: dict[str, Any] = {"answer_bytes": reference.mean_bytes, "ready_s": rounded(ready_s), "archive": of}
        more["gpu_mib_per_worker"] = bench.mib_per_worker(workers)
        if spread := server.workers_per_gpu(served.name):
            more["workers_per_gpu"] = ",".join(map(str, spread))
        points(bench, plan, served, load, reference, setting, more)
        started = time.monotonic()
    return described(server, served.name)


def run_address(bench: Bench, running: RunningServer, plan: Plan, workers: Sequence[int] | None, load: Load) -> None:
    """Measure a server that runs already; a TorchServe of this program's own serves the no-op.

    workers: None does not change their number.
    """
    counts: Sequence[int | None] = workers or [None]
    of_address = replace(plan, workers=[count or 1 for count in counts])
    bench.show(bench.begin(point_counts.of_noop(plan) + point_counts.of_subject(of_address)))
    reference = reference_answers.ask(running.endpoint(), load)
    if plan.noop:
        with _started(bench, Fleet(Layout(), {}, {})) as server:
            noop(bench, server, plan, load, reference, Setting(None, NOOP_BATCH, 1))
    for count in counts:
        setting = running.scale(count)
        points(bench, plan, running, load, reference, setting, {"answer_bytes": reference.mean_bytes})


def points(
    bench: Bench,
    plan: Plan,
    subject: Subject,
    load: Load,
    reference: ReferenceAnswers | None,
    setting: Setting,
    more: Mapping[str, Any],
) -> None:
    """Measure the closed loop with each number of clients, then the open loop at each rate."""
    servers = len(subject.endpoint().each)
    counts = [clients for clients in plan.clients if clients % servers == 0]
    for clients in plan.clients:
        if clients not in counts:
            bench.skip(f"{subject.name}, clients: {clients}", f"not to be divided evenly between {servers} servers")
    bench.warm_up_java(subject, load, max(counts, default=servers))
    rows = [bench.closed(subject, load, reference, setting, clients, **more) for clients in counts]
    most = max((row["requests_per_s"] for row in rows), default=0.0)
    for rate in plan.rates:
        asked = rate_of(rate, most)
        if asked > 0:
            bench.open(subject, load, reference, setting, asked, asked=rate, **more)
        else:
            bench.skip(f"{subject.name}, open loop at {rate}", "no request was answered in the closed loop")


def rate_of(text: str, most: float) -> float:
    """ "70%" -> that share of `most`; "500" -> 500 requests/s."""
    return most * float(text[:-1]) / 100 if text.endswith("%") else float(text)


def noop(bench: Bench, server: Fleet, plan: Plan, load: Load, reference: ReferenceAnswers, setting: Setting) -> None:
    """Measure a handler that does nothing, with as many bytes in and out; once per load."""
    if _has_noop(bench, load):
        return
    workers = noop_workers(bench.layout, os.cpu_count() or 1)
    archive = archives.make_noop(server.store, NOOP, reference.mean_bytes)
    server.register(archive, setting.batch_size, setting.delay_ms)
    try:
        server.scale(NOOP, workers, waiting(bench.show))
        its_own = Setting(workers, setting.batch_size, setting.delay_ms)
        subject = Served(server, NOOP, "no-op")
        bench.warm_up_java(subject, load, max(plan.clients))
        for clients in plan.clients:
            bench.closed(subject, load, None, its_own, clients, answer_bytes=reference.mean_bytes)
    finally:
        server.unregister(NOOP)


def _has_noop(bench: Bench, load: Load) -> bool:
    return any(name == load.name for name, _ in bench.noop)


def noop_workers(layout: Layout, cores: int) -> int:
    """4 workers per GPU, on half the cores at most; as many for each GPU and for each server."""
    unit = max(layout.factor, layout.servers)
    return max(1, min(4 * layout.factor, cores // 2) // unit) * unit


def setting_of(server: Fleet, model: str, workers: int) -> Setting:
    """How the model is served, as TorchServe describes it."""
    found = server.client.describe(model)
    return Setting(workers, found.get("batchSize"), found.get("maxBatchDelay"))


def described(server: Fleet, model: str) -> dict[str, Any]:
    """The handler's own description; {} if it has none."""
    with contextlib.suppress(ServerError, KeyError, ValueError, IndexError):
        found = server.client.customized(model)
        return found if isinstance(found, dict) else {}
    return {}
