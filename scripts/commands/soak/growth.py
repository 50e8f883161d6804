"""Memory over time, and whether it is flat: the stated test of a soak."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import psutil
from server.client import Client
from server.errors import ServerError
from updates.memory import gpu_used_mib

BOUND_MB = 100.0  # Triton's bound: its tests of memory growth allow 100 MB
WINDOW = 0.1  # of the second half: values are medians over this share, at half-way and at the end
MOST_SAMPLES = 1200
RULE = (
    f"Memory is flat if it grows by less than {BOUND_MB:.0f} MB from half-way to the end. Both are medians, over the "
    "first and the last tenth of the second half."
)


@dataclass
class Series:
    """Values in MB by time.monotonic()."""

    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, at: float, value: float) -> None:
        self.times.append(at)
        self.values.append(value)

    def thin(self) -> None:
        """Drop every second value."""
        self.times, self.values = self.times[::2], self.values[::2]

    def growth(self, start: float, end: float) -> tuple[float, float] | None:
        """MB at half-way and at the end of that time; None if there are no values of one of them."""
        half = (start + end) / 2
        width = (end - half) * WINDOW
        found = [self._median(half, half + width), self._median(end - width, end)]
        return None if None in found else (found[0], found[1])  # type: ignore[return-value]

    def _median(self, start: float, end: float) -> float | None:
        values = [value for at, value in zip(self.times, self.values, strict=True) if start <= at <= end]
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Verdict:
    """What the test says of one process or GPU."""

    name: str
    half_mb: float
    end_mb: float

    @property
    def is_flat(self) -> bool:
        return self.end_mb - self.half_mb < BOUND_MB


@dataclass
class Growth:
    """Samples the memory of the JVM, of each worker and of the GPUs.

    java: the process ids of the JVM. models: whose workers are watched. series: by what is watched: "java", "GPU 0",
    "MODEL, largest worker". workers: of each worker that runs, by name and process id. last: when the last sample
    was taken, in time.monotonic()'s seconds.
    """

    client: Client
    java: Callable[[], list[int]]
    models: list[str]
    series: dict[str, Series] = field(default_factory=dict)
    workers: dict[tuple[str, int], Series] = field(default_factory=dict)
    last: float = 0.0

    def sample(self) -> None:
        """Take one sample of everything; what cannot be read now is left out."""
        now = self.last = time.monotonic()
        if found := [mb for pid in self.java() if (mb := resident_mb(pid)) is not None]:
            self._add("java", now, max(found))
        for index, mib in enumerate(gpu_used_mib()):
            self._add(f"GPU {index}", now, mib * 2**20 / 1e6)
        for model in self.models:
            with contextlib.suppress(OSError, ServerError, KeyError, ValueError):
                self._sample_workers(model, now)
        if any(len(series.times) > MOST_SAMPLES for series in self.series.values()):
            for series in (*self.series.values(), *self.workers.values()):
                series.thin()

    def _sample_workers(self, model: str, now: float) -> None:
        answer = self.client.manage("GET", f"/models/{model}/all").json()
        pids = [int(worker["pid"]) for version in answer for worker in version["workers"]]
        sizes = {pid: mb for pid in pids if (mb := resident_mb(pid)) is not None}
        if sizes:
            self._add(f"{model}, largest worker", now, max(sizes.values()))
        for pid, mb in sizes.items():
            self.workers.setdefault((model, pid), Series()).add(now, mb)
        for key in [key for key in self.workers if key[0] == model and key[1] not in sizes]:
            del self.workers[key]

    def _add(self, name: str, now: float, mb: float) -> None:
        self.series.setdefault(name, Series()).add(now, mb)

    def verdicts(self, start: float) -> list[Verdict]:
        """Of all that was there half-way between `start` (time.monotonic()) and the last sample, and at the end."""
        named: Mapping[str, Series] = {
            **self.series,
            **{f"{model}, worker {pid}": series for (model, pid), series in self.workers.items()},
        }
        found = {name: series.growth(start, self.last) for name, series in named.items()}
        return [Verdict(name, *values) for name, values in found.items() if values]


def resident_mb(pid: int) -> float | None:
    """Resident memory in MB; None if the process is gone."""
    try:
        return psutil.Process(pid).memory_info().rss / 1e6
    except psutil.Error:
        return None
