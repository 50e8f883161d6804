"""Simulate how fronts choose replicas on Ray: the better of two at random, the best of all, or by their own calls.

    .venv/bin/python scripts/research/ray_routing.py

A closed loop of clients asks fronts, which send calls of up to 16 requests, and a few at a time. A replica takes up
to 16 requests, works on them on a CPU core, and then shares its GPU with the other replicas of that GPU. A front
knows how long a replica's queue was when it last sent it a call, and counts its own calls since then. Nothing is
measured: times are about those of BERT-Large with 32 texts per request on an H200, and only the ways are to be
compared.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

BATCH = 16  # requests in a batch and in a call, at most
REPLICAS, FRONTS = 6, 3  # per GPU
CALLS = 6  # of a front that are on their way, at most; as ray_host.app.gathering has it
HOP_S = 0.004  # a message's way through event loops
CPU_S, CPU_PER_REQUEST_S = 0.004, 0.0009  # of a batch before the GPU
GPU_PER_REQUEST_S = 0.00095
MOST_OF_GPU = 0.35  # that one replica can use alone


@dataclass
class Call:
    """Requests, by their clients and starts, on their way from a front to a replica."""

    front: int
    replica: int
    requests: list[tuple[int, float]]
    unanswered: int


@dataclass
class Gpu:
    """Work left of each replica that computes, in seconds of a whole GPU."""

    left: dict[int, float] = field(default_factory=dict)
    at: float = 0.0
    version: int = 0

    def rate(self) -> float:
        return min(MOST_OF_GPU, 1 / len(self.left))

    def advance(self, now: float) -> None:
        if self.left:
            done = (now - self.at) * self.rate()
            self.left = {replica: work - done for replica, work in self.left.items()}
        self.at = now


WAYS = {
    "two": "the better of two at random, as Ray's own router",
    "all": "the best of all, by the queue lengths that the front knows",
    "own": "of those with the fewest calls of this front the best, as ray_host.routing",
}


class Simulation:
    """One run. way: of WAYS. clients: per GPU."""

    def __init__(self, gpus: int, way: str, clients: int, seed: int = 1) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a simulation
        self.way, self.now = way, 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.gpus = [Gpu() for _ in range(gpus)]
        self.waiting: list[list[tuple[int, float]]] = [[] for _ in range(FRONTS * gpus)]
        self.on_way = [0] * len(self.waiting)
        replicas = REPLICAS * gpus
        self.known = [[0] * replicas for _ in self.waiting]  # queue lengths, by front and replica
        self.own = [[0] * replicas for _ in self.waiting]  # calls on their way, by front and replica
        self.calls = [0] * replicas
        self.queues: list[list[tuple[Call, float]]] = [[] for _ in range(replicas)]
        self.running: list[list[Call]] = [[] for _ in range(replicas)]
        self.latencies: list[float] = []
        for client in range(clients * gpus):
            self.after(0.05 * self.random.random(), self.arrival(client))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.numbers), event))

    def run(self, seconds: float) -> tuple[float, float, float]:
        """Return requests/s, and p50 and p99 in ms."""
        while self.events and self.events[0][0] <= seconds:
            self.now, _, event = heapq.heappop(self.events)
            event()
        times = sorted(self.latencies)
        return len(times) / seconds, 1e3 * times[len(times) // 2], 1e3 * times[len(times) * 99 // 100]

    def arrival(self, client: int) -> Callable[[], None]:
        front = client % len(self.waiting)

        def arrive() -> None:
            self.waiting[front].append((client, self.now))
            self.after(0.0, lambda: self.send(front))  # in the next turn of the event loop

        return arrive

    def send(self, front: int) -> None:
        while self.waiting[front] and self.on_way[front] < CALLS:
            requests, self.waiting[front] = self.waiting[front][:BATCH], self.waiting[front][BATCH:]
            call = Call(front, self.choose(front), requests, len(requests))
            self.on_way[front] += 1
            self.calls[call.replica] += 1
            self.known[front][call.replica] += 1
            self.own[front][call.replica] += 1
            self.after(HOP_S, lambda call=call: self.deliver(call))  # type: ignore[misc]

    def choose(self, front: int) -> int:
        count = len(self.queues)
        found = self.random.sample(range(count), 2 if self.way == "two" else count)
        own = self.own[front] if self.way == "own" else [0] * count
        return min(found, key=lambda replica: (own[replica], self.known[front][replica]))

    def deliver(self, call: Call) -> None:
        self.known[call.front][call.replica] = self.calls[call.replica]
        self.queues[call.replica] += [(call, 0.0)] * len(call.requests)
        self.begin(call.replica)

    def begin(self, replica: int) -> None:
        if self.running[replica] or not self.queues[replica]:
            return
        batch, self.queues[replica] = self.queues[replica][:BATCH], self.queues[replica][BATCH:]
        self.running[replica] = [call for call, _ in batch]
        self.after(CPU_S + CPU_PER_REQUEST_S * len(batch), lambda: self.compute(replica))

    def compute(self, replica: int) -> None:
        gpu = self.gpus[replica // REPLICAS]
        gpu.advance(self.now)
        gpu.left[replica] = GPU_PER_REQUEST_S * len(self.running[replica])
        self.plan(gpu)

    def plan(self, gpu: Gpu) -> None:
        """Come back when the next replica has computed, unless another one begins before."""
        gpu.version += 1
        version = gpu.version
        if gpu.left:
            self.after(max(0.0, min(gpu.left.values())) / gpu.rate(), lambda: self.computed(gpu, version))

    def computed(self, gpu: Gpu, version: int) -> None:
        if version != gpu.version:
            return
        gpu.advance(self.now)
        for replica in [replica for replica, work in gpu.left.items() if work < 1e-9]:
            del gpu.left[replica]
            self.finish(replica)
        self.plan(gpu)

    def finish(self, replica: int) -> None:
        done, self.running[replica] = self.running[replica], []
        for call in done:
            call.unanswered -= 1
            if not call.unanswered:
                self.after(HOP_S, lambda call=call: self.answered(call))  # type: ignore[misc]
        self.begin(replica)

    def answered(self, call: Call) -> None:
        self.on_way[call.front] -= 1
        self.calls[call.replica] -= 1
        self.known[call.front][call.replica] -= 1
        self.own[call.front][call.replica] -= 1
        for client, began in call.requests:
            self.latencies.append(self.now - began)
            self.after(HOP_S, self.arrival(client))
        self.send(call.front)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="simulated (default: %(default)s)")
    seconds = parser.parse_args(arguments).seconds
    for way, meaning in WAYS.items():
        print(f"{way}: {meaning}")
        for clients in (64, 128):
            one, two = (Simulation(gpus, way, clients).run(seconds) for gpus in (1, 2))
            print(
                f"  {clients} clients per GPU: {one[0]:.0f} and {two[0]:.0f} requests/s on 1 and 2 GPUs "
                f"({two[0] / one[0]:.2f}x), p99 {one[2]:.0f} and {two[2]:.0f} ms"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
