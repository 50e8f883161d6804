"""What is measured in which order: for each archive and setting lone answers, the no-op, workers, clients."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from torchserve import ServerError

from serving_bench import archives, checking, prometheus
from serving_bench.archives import Archive
from serving_bench.checking import Lone
from serving_bench.deployment import Deployment
from serving_bench.load import Endpoint, GeneratorError, Load
from serving_bench.measure import Bench, Setting, Subject
from serving_bench.peers import lit, nv_triton, stock, unpack
from serving_bench.running import Running
from serving_bench.watch import Groups

PEERS: Mapping[str, Any] = {module.NAME: module for module in (stock, lit, nv_triton)}
NOOP = "noop"
NOOP_BATCH = 64  # for servers whose own is unknown


@dataclass(frozen=True)
class Plan:
    """What to measure. batch_sizes, delays_ms: None in them leaves what the archive says.

    rates: of the open loop, requests/s, or as a share of what the closed loop reached ("70%").
    """

    workers: Sequence[int]
    clients: Sequence[int]
    batch_sizes: Sequence[int | None]
    delays_ms: Sequence[int | None]
    rates: Sequence[str]
    noop: bool = True
    peers: Sequence[str] = ()


@dataclass(frozen=True)
class Served:
    """A model of a TorchServe that this program started."""

    deployment: Deployment
    name: str
    kind: str

    def endpoint(self) -> Endpoint:
        self.deployment.trim_log()
        return self.deployment.endpoint(self.name)

    def groups(self) -> Groups:
        return self.deployment.groups()

    def figures(self) -> Mapping[str, float]:
        return prometheus.of_model(self.deployment.client.metrics(), self.name)


def run(
    bench: Bench, deployment: Deployment, plan: Plan, loads: Sequence[tuple[Archive, Load]]
) -> dict[str, dict[str, Any]]:
    """Measure each archive with its load; what each says of itself, by name."""
    found = {}
    for archive, load in loads:
        about = archive.about()
        for batch_size, delay_ms in product(plan.batch_sizes, plan.delays_ms):
            said = _archive(bench, deployment, plan, archive, load, batch_size, delay_ms, "archive")
            about.setdefault("description", said)
            for peer in plan.peers:
                _peer(bench, deployment, plan, peer, archive, load, batch_size, delay_ms)
        found[archive.name] = about
    return found


def _peer(
    bench: Bench,
    deployment: Deployment,
    plan: Plan,
    peer: str,
    archive: Archive,
    load: Load,
    batch_size: int | None,
    delay_ms: int | None,
) -> None:
    """The same network and load through another server. One that cannot run is said, and passed over."""
    name = f"{peer}-{archive.name}"
    bench.say(f"{name}: {PEERS[peer].WHAT}")
    try:
        if reason := PEERS[peer].objection(archive):
            bench.skip(name, reason)
        elif peer == stock.NAME:
            made = stock.make(archive, deployment.store)
            _archive(bench, deployment, plan, made, load, batch_size, delay_ms, "peer")
        else:
            unpacked = unpack(archive, deployment.folder)
            own = archive.batching
            setting = (batch_size or own["batchSize"], delay_ms or own["maxBatchDelay"])
            _program(bench, plan, PEERS[peer], archive, unpacked, load, setting)
    except (ServerError, GeneratorError, OSError, subprocess.CalledProcessError) as error:
        bench.skip(name, str(error))


def _program(
    bench: Bench, plan: Plan, peer: Any, archive: Archive, unpacked: Path, load: Load, setting: tuple[int, int]
) -> None:
    """A peer that is a program of its own, started anew for each count of workers."""
    bodies = [peer.request(body, load) for body in load.bodies]
    its_own = Load(load.name, bodies, {"Content-Type": peer.CONTENT_TYPE}, load.unit, load.items)
    lone: Lone | None = None
    for workers in plan.workers:
        free = bench.gpus.memory_mib()
        with peer.served(archive, unpacked, its_own, workers, *setting) as program:
            lone = lone or checking.ask(program.endpoint(), its_own)
            more = {"answer_bytes": lone.mean_bytes, "gpu_mib_per_worker": _per_worker(bench, free, workers)}
            points(bench, plan, program, its_own, lone, Setting(workers, *setting), more)


def _archive(
    bench: Bench,
    deployment: Deployment,
    plan: Plan,
    archive: Archive,
    load: Load,
    batch_size: int | None,
    delay_ms: int | None,
    kind: str,
) -> dict[str, Any]:
    """All points of one archive at one batch size and delay; its description."""
    free = bench.gpus.memory_mib()
    deployment.register(archive, batch_size, delay_ms)
    try:
        return _registered(bench, deployment, plan, Served(deployment, archive.name, kind), load, free)
    finally:
        with contextlib.suppress(OSError, ServerError):
            deployment.unregister(archive.name)


def _registered(
    bench: Bench, deployment: Deployment, plan: Plan, served: Served, load: Load, free: float | None
) -> dict[str, Any]:
    lone: Lone | None = None
    for workers in plan.workers:
        deployment.scale(served.name, workers, _once(bench.say))
        setting = setting_of(deployment, served.name, workers)
        if lone is None:
            lone = checking.ask(served.endpoint(), load)
            if served.kind == "archive":
                bench.lone[load.name] = lone
            if plan.noop:
                noop(bench, deployment, plan, load, lone, setting)
        more = {"answer_bytes": lone.mean_bytes, "gpu_mib_per_worker": _per_worker(bench, free, workers)}
        points(bench, plan, served, load, lone, setting, more)
    return described(deployment, served.name)


def run_address(bench: Bench, running: Running, plan: Plan, workers: Sequence[int] | None, load: Load) -> None:
    """Measure a server that runs already; the no-op is served beside it, by a TorchServe of its own.

    workers: None leaves them as they are.
    """
    lone = checking.ask(running.endpoint(), load)
    if plan.noop:
        with Deployment({}) as deployment:
            noop(bench, deployment, plan, load, lone, Setting(None, NOOP_BATCH, 1))
    counts: Sequence[int | None] = workers or [None]
    for count in counts:
        setting = running.scale(count)
        points(bench, plan, running, load, lone, setting, {"answer_bytes": lone.mean_bytes})


def points(
    bench: Bench,
    plan: Plan,
    subject: Subject,
    load: Load,
    lone: Lone | None,
    setting: Setting,
    more: Mapping[str, Any],
) -> None:
    """The closed loop with each number of clients, then the open loop at each rate."""
    bench.heat(subject, load, max(plan.clients))
    rows = [bench.closed(subject, load, lone, setting, clients, **more) for clients in plan.clients]
    most = max((row["requests_per_s"] for row in rows), default=0.0)
    for rate in plan.rates:
        asked = rate_of(rate, most)
        if asked > 0:
            bench.open(subject, load, lone, setting, asked, asked=rate, **more)
        else:
            bench.skip(f"{subject.name}, open loop at {rate}", "no request was answered in the closed loop")


def rate_of(text: str, most: float) -> float:
    """ "70%" -> that share of `most`; "500" -> 500 requests/s."""
    return most * float(text[:-1]) / 100 if text.endswith("%") else float(text)


def noop(bench: Bench, deployment: Deployment, plan: Plan, load: Load, lone: Lone, setting: Setting) -> None:
    """The same bytes in and out through a handler that does nothing, with each number of clients; once a load."""
    if any(name == load.name for name, _ in bench.noop):
        return
    workers = max(1, min(4, (os.cpu_count() or 1) // 2))
    archive = archives.make_noop(deployment.store, NOOP, lone.mean_bytes)
    deployment.register(archive, setting.batch_size, setting.delay_ms)
    try:
        deployment.scale(NOOP, workers)
        its_own = Setting(workers, setting.batch_size, setting.delay_ms)
        subject = Served(deployment, NOOP, "no-op")
        bench.heat(subject, load, max(plan.clients))
        for clients in plan.clients:
            bench.closed(subject, load, None, its_own, clients, answer_bytes=lone.mean_bytes)
    finally:
        deployment.unregister(NOOP)


def setting_of(deployment: Deployment, model: str, workers: int) -> Setting:
    """As TorchServe describes the model."""
    said = deployment.client.describe(model)
    return Setting(workers, said.get("batchSize"), said.get("maxBatchDelay"))


def described(deployment: Deployment, model: str) -> dict[str, Any]:
    """The handler's own words; nothing if it has none."""
    with contextlib.suppress(ServerError, KeyError, ValueError, IndexError):
        found = deployment.client.customized(model)
        return found if isinstance(found, dict) else {}
    return {}


def _per_worker(bench: Bench, free: float | None, workers: int) -> float | None:
    """GPU memory that each worker has taken before the load; later growth is in the row's gpu_memory_mib."""
    taken = bench.gpus.memory_mib()
    return round((taken - free) / workers) if taken is not None and free is not None else None


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Says a line only if it is another one than the last."""
    said = [""]

    def tell(line: str) -> None:
        if line != said[0]:
            say(f"  {line}")
        said[0] = line

    return tell
