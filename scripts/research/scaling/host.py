"""One simulated host: a front end that forms batches, and workers that share the CPU cores and the GPUs.

The rules of batching are TorchServe's: an idle worker takes the first job of the queue and waits up to
`max_batch_delay` for more, and it gets its next batch only after it has answered.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import simpy

Events = Generator[simpy.Event, Any, Any]


@dataclass(frozen=True)
class Costs:
    """What a request and a batch cost. Times are in seconds of a machine that does nothing else.

    Attributes:
        frontend: of the front end's whole capacity, per request: 1 / (requests/s of a handler that does nothing).
        cpu_batch, cpu_item: of a worker, per batch and per item, apart from the GPU; sending and receiving included.
        gpu_batch, gpu_item: of the GPU, per batch and per item.
        worker_cores: cores that a worker keeps busy while it is not waiting for the GPU.
        frontend_cores: core seconds of the front end, and of the load generator beside it, per request.
        overlap: how much faster the GPU gets through its work when two or more workers share it.
    """

    frontend: float
    cpu_batch: float
    cpu_item: float
    gpu_batch: float
    gpu_item: float
    worker_cores: float
    frontend_cores: float
    overlap: float


@dataclass(frozen=True)
class Setup:
    """A host and its settings.

    Attributes:
        workers: of all GPUs together.
        max_batch_delay: in seconds.
        queue_size: jobs that wait at most; one more is refused at once.
        crowding: how much longer work on the CPU takes per further busy core of 16. Threads share cores, caches,
            memory and power, so that even a half-busy machine is slower than an idle one.
    """

    workers: int
    batch_size: int
    max_batch_delay: float
    queue_size: int
    gpus: int
    crowding: float


@dataclass
class Job:
    """A request: when it came, and whom to tell that it is answered (True), or refused or lost (False)."""

    arrived: float
    done: Callable[[bool], None]


class Host:
    """A host in a simulation. `offer` takes a request; `fail` and `repair` end and begin its life."""

    def __init__(self, env: simpy.Environment, costs: Costs, setup: Setup, seed: random.Random) -> None:
        self.env, self.costs, self.setup, self.random = env, costs, setup, seed
        self.gpus = [simpy.Resource(env) for _ in range(setup.gpus)]
        self.frontend_free = 0.0  # when the front end has taken all requests so far
        self.queue: deque[Job] = deque()
        self.idle: deque[simpy.Event] = deque()  # a worker each, waiting for its first job
        self.filling: deque[tuple[simpy.Event, int]] = deque()  # workers that wait for more, and for how many
        self.busy_cores = 0.0
        self.alive = True
        self.life = 0
        self.outstanding = 0
        self.answered = self.refused = self.lost = self.batches = 0
        self.gpu_seconds = 0.0
        self._start()

    def offer(self, done: Callable[[bool], None]) -> None:
        """Take one request. `done` is called with True at its answer, with False if it is refused or lost."""
        self.outstanding += 1
        job = Job(self.env.now, done)
        if not self.alive:
            self._end(job, False)
            return
        self.frontend_free = max(self.frontend_free, self.env.now) + self.costs.frontend
        after(self.env, self.frontend_free - self.env.now, functools.partial(self._enqueue, job, self.life))

    def fail(self) -> None:
        """The host dies: what it holds is lost, and new requests are lost at once, until `repair`."""
        self.alive = False
        self.life += 1
        for job in self.queue:
            self._end(job, False)
        self.queue.clear()
        self.idle.clear()
        self.filling.clear()
        self.busy_cores = 0.0

    def repair(self) -> None:
        """The host is back, with its models loaded."""
        self.alive = True
        self.gpus = [simpy.Resource(self.env) for _ in range(self.setup.gpus)]
        self._start()

    def _start(self) -> None:
        for number in range(self.setup.workers):
            self.env.process(self._worker(self.gpus[number % len(self.gpus)], self.life))

    def _enqueue(self, job: Job, life: int) -> None:
        if life != self.life:
            self._end(job, False)
        elif len(self.queue) >= self.setup.queue_size:
            self.refused += 1
            self._end(job, False)
        else:
            self.queue.append(job)
            self._wake()

    def _wake(self) -> None:
        """A worker that fills its batch takes the job; otherwise an idle one does; otherwise it stays queued."""
        if self.filling:
            event, wanted = self.filling[0]
            if len(self.queue) >= wanted:
                self.filling.popleft()
                event.succeed()
        elif self.idle:
            self.idle.popleft().succeed()

    def _worker(self, gpu: simpy.Resource, life: int) -> Events:
        while life == self.life:
            if not self.queue:
                event = self.env.event()
                self.idle.append(event)
                yield event
            jobs = yield from self._batch(life)
            if jobs:
                yield from self._run(jobs, gpu, life)

    def _batch(self, life: int) -> Generator[simpy.Event, Any, list[Job]]:
        """The first job and what comes within the delay, up to the batch size."""
        jobs = [self.queue.popleft()] if self.queue else []
        missing = self.setup.batch_size - len(jobs)
        if jobs and len(self.queue) < missing:
            entry = (self.env.event(), missing)
            self.filling.append(entry)
            yield entry[0] | self.env.timeout(self.setup.max_batch_delay)
            if entry in self.filling:
                self.filling.remove(entry)
        if life != self.life:
            for job in jobs:
                self._end(job, False)
            return []
        while self.queue and len(jobs) < self.setup.batch_size:
            jobs.append(self.queue.popleft())
        if self.queue and self.idle:
            self.idle.popleft().succeed()
        return jobs

    def _run(self, jobs: list[Job], gpu: simpy.Resource, life: int) -> Events:
        size, costs = len(jobs), self.costs
        yield from self._use_cpu(costs.cpu_batch + costs.cpu_item * size, size, life)
        shared = gpu.count > 0
        with gpu.request() as turn:
            yield turn
            seconds = (costs.gpu_batch + costs.gpu_item * size) / (costs.overlap if shared or gpu.queue else 1)
            self.gpu_seconds += seconds
            yield self.env.timeout(seconds)
        self.batches += 1
        for job in jobs:
            self._end(job, life == self.life)

    def _use_cpu(self, seconds: float, size: int, life: int) -> Events:
        """Busy cores slow each other down; a batch's CPU time varies by a tenth."""
        frontend = self.costs.frontend_cores * size / seconds  # this batch's share of it, meanwhile
        cores = self.costs.worker_cores + frontend
        slower = 1 + self.setup.crowding * self.busy_cores
        self.busy_cores += cores
        yield self.env.timeout(seconds * slower * self.random.lognormvariate(0, 0.1))
        if life == self.life:
            self.busy_cores -= cores

    def _end(self, job: Job, answered: bool) -> None:
        self.outstanding -= 1
        self.answered += answered
        self.lost += not answered
        job.done(answered)


def after(env: simpy.Environment, seconds: float, action: Callable[[], object]) -> None:
    """Call `action` in so many seconds."""

    def act(_: simpy.Event) -> None:
        action()

    event = env.timeout(seconds)
    assert event.callbacks is not None  # noqa: S101 - it has just been made
    event.callbacks.append(act)


def closed_loop(costs: Costs, setup: Setup, clients: int, seconds: float, seed: int = 0) -> dict[str, float]:
    """Return requests/s, latencies in ms and the mean batch of clients that send anew when they are answered.

    A third of `seconds` is a warm-up in front of them. Refused requests count as no answers.
    """
    env = simpy.Environment()
    host = Host(env, costs, setup, random.Random(seed))  # noqa: S311 - a simulation, no secret
    warm_up, latencies = seconds / 3, []

    def send() -> None:
        sent = env.now

        def done(answered: bool) -> None:
            if answered and env.now > warm_up:
                latencies.append(env.now - sent)
            after(env, 1e-4, send)

        host.offer(done)

    for number in range(clients):
        after(env, number * 1e-5, send)
    env.run(warm_up)
    batches, answered, gpu = host.batches, host.answered, host.gpu_seconds
    env.run(warm_up + seconds)
    latencies.sort()
    return {
        "requests_per_s": len(latencies) / seconds,
        "p50_ms": 1e3 * percentile(latencies, 0.5),
        "p99_ms": 1e3 * percentile(latencies, 0.99),
        "mean_batch": (host.answered - answered) / max(1, host.batches - batches),
        "gpu_busy": (host.gpu_seconds - gpu) / seconds / setup.gpus,
    }


def percentile(ordered: list[float], share: float) -> float:
    """Return the value below which this share of an ascending list lies; NaN of an empty list."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
