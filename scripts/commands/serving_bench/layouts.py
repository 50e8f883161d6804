"""How servers lie on a machine with several GPUs: how many GPUs, how many servers, with or without MPS."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from server.gpus import BY_BUS, DEVICES

ONE, PER_GPU = "one", "per-gpu"


@dataclass(frozen=True)
class Layout:
    """GPUs and servers of some rows.

    devices: the GPUs' numbers, as nvidia-smi counts; None: all that are visible, nothing is said of them to anyone.
    servers: TorchServes between which GPUs and workers are divided. mps: None: as the machine has it.
    first: the number of GPUs and of servers in the row to which the others of this kind are compared; None: no
    comparison. named: whether rows name the number of servers.
    """

    devices: tuple[int, ...] | None = None
    servers: int = 1
    mps: bool | None = None
    first: tuple[int, int] | None = None
    named: bool = False

    @property
    def gpus(self) -> int | None:
        """How many; None if not given."""
        return None if self.devices is None else len(self.devices)

    @property
    def factor(self) -> int:
        """By how much numbers that are per GPU are multiplied."""
        return self.gpus or 1

    @property
    def shares(self) -> list[tuple[int, ...] | None]:
        """The devices of each server."""
        if self.devices is None:
            return [None] * self.servers
        each = len(self.devices) // self.servers
        return [self.devices[start : start + each] for start in range(0, len(self.devices), each)]

    def columns(self) -> dict[str, object]:
        """The columns of each row; None for what was not asked for."""
        words = {None: None, True: "on", False: "off"}
        return {"gpus": self.gpus, "servers": self.servers if self.named else None, "mps": words[self.mps]}

    def __str__(self) -> str:
        gpus = f"{self.gpus} GPU{'s' if self.gpus != 1 else ''}, " if self.gpus else ""
        mps = "" if self.mps is None else f", MPS {'on' if self.mps else 'off'}"
        return f"{gpus}{self.servers} server{'s' if self.servers > 1 else ''}{mps}"


def environment_of(devices: tuple[int, ...] | None) -> dict[str, str]:
    """The environment in which a process sees only these GPUs."""
    return {} if devices is None else {DEVICES: ",".join(map(str, devices)), **BY_BUS}


def layouts(
    gpus: Sequence[int] | None, servers: Sequence[str], mps: Sequence[bool | None], there: int
) -> list[Layout]:
    """All combinations, without repetitions: with one GPU, "one" and "per-gpu" are the same.

    gpus: counts; None: all visible ones. servers: "one", "per-gpu" or numbers. there: GPUs of this machine.
    Raises ValueError for what this machine has not, and for GPUs that cannot be divided between the servers.
    """
    numbers = visible(os.environ, there)
    counts: Sequence[int | None] = gpus or ([len(numbers)] if PER_GPU in servers else [None])
    named = bool(gpus) or list(servers) != [ONE]
    found: dict[tuple[object, ...], Layout] = {}
    for count, word, on in product(counts, servers, mps):
        devices = None if count is None else _first(numbers, count)
        first = None if not gpus or len(gpus) < 2 else (gpus[0], _servers(word, gpus[0]))
        layout = Layout(devices, _servers(word, count), on, first, named)
        found.setdefault((layout.devices, layout.servers, layout.mps), layout)
    return list(found.values())


def visible(environment: Mapping[str, str], there: int) -> list[int]:
    """The numbers of the GPUs that this process may use. Raises ValueError if they are named in another way."""
    words = environment.get(DEVICES)
    if words is None:
        return list(range(there))
    try:
        return [int(word) for word in words.split(",") if word.strip()]
    except ValueError:
        raise ValueError(f"{DEVICES} is {words!r}; for several GPUs it has to hold numbers, such as 0,1") from None


def count_visible(environment: Mapping[str, str], there: int) -> int:
    """How many GPUs this process may use, however they are named. there: GPUs of this machine."""
    words = environment.get(DEVICES)
    return there if words is None else len([word for word in words.split(",") if word.strip() not in ("", "-1")])


def _first(numbers: Sequence[int], count: int) -> tuple[int, ...]:
    if not 1 <= count <= len(numbers):
        raise ValueError(f"{max(1, count)} GPUs are asked for, and {len(numbers)} are here")
    return tuple(numbers[:count])


def _servers(word: str, gpus: int | None) -> int:
    count = 1 if word == ONE else gpus or 1 if word == PER_GPU else int(word)
    if gpus and gpus % count:
        raise ValueError(f"{gpus} GPUs cannot be divided between {count} servers")
    return count


def divided(total: int, parts: int) -> list[int]:
    """Whole numbers that sum to `total`, as equal as can be."""
    return [total // parts + (index < total % parts) for index in range(parts)]
