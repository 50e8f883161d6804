"""How many hosts and TorchServes a rate of requests takes, and what would end the growth of a host first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

LOAD = 0.7  # of what a host can do: the share at which the plan runs it
SPARE = 0.05  # of the hosts, at least one: they may be away without harm
CORES_PER_GPU = 16  # as the measured host had
GIGABITS_ALONE, GIGABITS = 25, 100  # of a host's network: with one GPU, and with several; assumptions


@dataclass(frozen=True)
class Cost:
    """What one request takes, by the fastest measured row of its load.

    Args:
        per_gpu: requests/s of one GPU.
        per_front_end: requests/s of one TorchServe whose handler does nothing.
        gpu_s, core_s: seconds of a GPU and of a CPU core.
        bytes_in, bytes_out: without HTTP headers.
    """

    per_gpu: float
    per_front_end: float
    gpu_s: float
    core_s: float
    bytes_in: float
    bytes_out: float


@dataclass(frozen=True)
class Plan:
    """Equal hosts for one rate.

    Attributes:
        gpus: that the rate needs, without spare ones.
        gpus_per_host: that each host has.
        hosts: that the rate needs, without spare ones.
        spare: hosts beside those.
        front_ends_per_host: TorchServes, each of which has the same number of GPUs.
        used: shares in use while the spare hosts are away, by what is used: "GPUs", "CPU cores", "front ends",
            "network".
    """

    gpus: int
    gpus_per_host: int
    hosts: int
    spare: int
    front_ends_per_host: int
    used: Mapping[str, float]

    @property
    def all_gpus(self) -> int:
        """GPUs of all hosts, the spare ones included."""
        return self.gpus_per_host * (self.hosts + self.spare)

    @property
    def front_ends(self) -> int:
        """TorchServes of all hosts, the spare ones included."""
        return self.front_ends_per_host * (self.hosts + self.spare)

    @property
    def next_limit(self) -> str:
        """What is used most, so that more requests per host fill it first."""
        return max(self.used, key=lambda name: self.used[name])


def cost(row: Row, per_front_end: float, bytes_in: float) -> Cost:
    """Return what a request of a row took. row: of scripts/bench_serving, on one GPU. The others: as of Cost."""
    rate = row["requests_per_s"]
    cores = row["cores"]["java"] + row["cores"]["workers"]
    return Cost(rate, per_front_end, row["gpu_busy"][0] / rate, cores / rate, bytes_in, row["answer_bytes"])


def planned(one: Cost, rate: float, gpus_per_host: int) -> Plan:
    """Return the hosts for a rate.

    Args:
        one: of the requests.
        rate: requests/s.
        gpus_per_host: the hosts have one GPU each if the rate needs fewer than these.
    """
    gpus = math.ceil(rate / (LOAD * one.per_gpu))
    size = gpus_per_host if gpus >= gpus_per_host else 1
    hosts = math.ceil(gpus / size)
    front_ends = evenly(size, size * one.per_gpu / one.per_front_end)
    gigabits = GIGABITS if size > 1 else GIGABITS_ALONE
    each = rate / hosts
    used = {
        "GPUs": each * one.gpu_s / size,
        "CPU cores": each * one.core_s / (CORES_PER_GPU * size),
        "front ends": each / (front_ends * one.per_front_end),
        "network": each * 8e-9 * max(one.bytes_in, one.bytes_out) / gigabits,
    }
    return Plan(gpus, size, hosts, max(1, math.ceil(SPARE * hosts)), front_ends, used)


def evenly(gpus: int, least: float) -> int:
    """Return how many front ends share the GPUs evenly: the smallest such number that is not below `least`.

    Either each front end has the same number of GPUs, or each GPU the same number of front ends.
    """
    found = math.ceil(least)
    while gpus % found and found % gpus:
        found += 1
    return found
