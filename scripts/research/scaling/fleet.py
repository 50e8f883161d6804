"""Many simulated hosts behind a balancer: Poisson arrivals, hosts that die and come back."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import simpy

from scaling.host import Costs, Events, Host, Setup, after, percentile

Choose = Callable[[Sequence[Host], random.Random], Host]


def at_random(hosts: Sequence[Host], seed: random.Random) -> Host:
    """Return any host."""
    return hosts[int(seed.random() * len(hosts))]


def less_busy_of_two(hosts: Sequence[Host], seed: random.Random) -> Host:
    """Return that one of two random hosts which holds fewer requests.

    Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 1996. nginx calls it
    `random two least_conn`, Envoy LEAST_REQUEST.
    """
    one, other = at_random(hosts, seed), at_random(hosts, seed)
    return one if one.outstanding <= other.outstanding else other


BALANCERS: dict[str, Choose] = {"random": at_random, "less busy of two": less_busy_of_two}


@dataclass(frozen=True)
class Fleet:
    """Hosts of one kind, their load, and what happens to them.

    Attributes:
        rate: requests/s that arrive at the balancer, as a Poisson process.
        failures: how many hosts die, one after the other, at equal distances in the measured time.
        unnoticed: seconds until the balancer sends a dead host nothing more.
        away: seconds until a dead host serves again.
        retries: how often a lost or refused request is sent to another host.
    """

    costs: Costs
    setup: Setup
    hosts: int
    rate: float
    balancer: str = "less busy of two"
    failures: int = 0
    unnoticed: float = 0.5
    away: float = 60.0
    retries: int = 1


@dataclass(frozen=True)
class Outcome:
    """What clients got: requests that came in the measured time, and latencies of the answered ones in ms."""

    requests: int
    lost: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    requests_per_s: float


class _Simulation:
    def __init__(self, fleet: Fleet, seconds: float, warm_up: float, seed: int) -> None:
        self.fleet, self.warm_up, self.end = fleet, warm_up, warm_up + seconds
        self.env = simpy.Environment()
        self.random = random.Random(seed)  # noqa: S311 - a simulation, no secret
        self.hosts = [Host(self.env, fleet.costs, fleet.setup, self.random) for _ in range(fleet.hosts)]
        self.known = list(self.hosts)  # alive, as far as the balancer knows
        self.choose = BALANCERS[fleet.balancer]
        self.requests = self.lost = 0
        self.latencies: list[float] = []

    def outcome(self) -> Outcome:
        self.env.process(self._arrivals())
        for number in range(self.fleet.failures):
            moment = self.warm_up + (self.end - self.warm_up) * (number + 0.5) / self.fleet.failures
            after(self.env, moment, functools.partial(self._kill, self.hosts[number]))
        self.env.run(self.end + 5)  # what came until the end is answered
        self.latencies.sort()
        p50, p99, p999 = (1e3 * percentile(self.latencies, share) for share in (0.5, 0.99, 0.999))
        return Outcome(self.requests, self.lost, p50, p99, p999, len(self.latencies) / (self.end - self.warm_up))

    def _arrivals(self) -> Events:
        while self.env.now < self.end:
            yield self.env.timeout(self.random.expovariate(self.fleet.rate))
            counts = self.env.now >= self.warm_up
            self.requests += counts
            self._send(self.env.now, self.fleet.retries, counts)

    def _send(self, came: float, retries: int, counts: bool) -> None:
        def done(answered: bool) -> None:
            if not answered and retries:
                after(self.env, 1e-3, lambda: self._send(came, retries - 1, counts))
            elif counts and answered:
                self.latencies.append(self.env.now - came)
            elif counts:
                self.lost += 1

        self.choose(self.known, self.random).offer(done)

    def _kill(self, host: Host) -> None:
        host.fail()
        after(self.env, self.fleet.unnoticed, lambda: self.known.remove(host))
        after(self.env, max(self.fleet.away, self.fleet.unnoticed), lambda: self._bring_back(host))

    def _bring_back(self, host: Host) -> None:
        host.repair()
        self.known.append(host)


def simulate(fleet: Fleet, seconds: float, warm_up: float = 0.5, seed: int = 0) -> Outcome:
    """Run the fleet for `seconds` of simulated time behind a warm-up; the same seed gives the same outcome.

    Raises ValueError if all hosts would be away at once, and KeyError for an unknown balancer.
    """
    if fleet.failures >= fleet.hosts:
        raise ValueError(f"{fleet.failures} of {fleet.hosts} hosts cannot die: none is left")
    return _Simulation(fleet, seconds, warm_up, seed).outcome()
