"""What a server uses under load: CPU, memory, GPU."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import psutil

Groups = Mapping[str, Sequence[psutil.Process]]
INTERVAL_MS = 200


@dataclass(frozen=True)
class GpuSample:
    """One reading of a GPU. at: time.monotonic(). busy: 0 to 1. memory_mib: in use."""

    at: float
    index: int
    busy: float
    memory_mib: float


@dataclass
class GpuMonitor:
    """Reads all GPUs several times per second, through nvidia-smi, until the `with` block ends.

    only: the GPUs to tell of; None: all.
    """

    samples: list[GpuSample] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None
    only: Collection[int] | None = None

    def __enter__(self) -> GpuMonitor:
        found = shutil.which("nvidia-smi")
        if found:
            query = "--query-gpu=index,utilization.gpu,memory.used"
            command = [found, query, "--format=csv,noheader,nounits", "-lms", str(INTERVAL_MS)]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _read(self) -> None:
        assert self.process is not None and self.process.stdout is not None  # noqa: S101, PT018 - just started
        for line in self.process.stdout:
            if sample := read_sample(line):
                self.samples.append(sample)

    def between(self, start: float, end: float) -> dict[int, tuple[float, float]]:
        """By GPU: the mean share of time in which it was busy (0 to 1), and the most memory in use (MiB)."""
        found: dict[int, list[GpuSample]] = {}
        for sample in list(self.samples):
            if start <= sample.at <= end and (self.only is None or sample.index in self.only):
                found.setdefault(sample.index, []).append(sample)
        return {
            index: (sum(one.busy for one in of) / len(of), max(one.memory_mib for one in of))
            for index, of in sorted(found.items())
        }

    def memory_mib(self) -> float | None:
        """Memory in use now on these GPUs together (MiB); None without GPUs."""
        if self.process is None:
            return None
        start = time.monotonic()
        time.sleep(4 * INTERVAL_MS / 1e3)
        found = self.between(start, time.monotonic())
        return sum(memory for _, memory in found.values()) if found else None


def read_sample(line: str) -> GpuSample | None:
    """A line of nvidia-smi's CSV; None for a line without numbers."""
    parts = [part.strip() for part in line.split(",")]
    with contextlib.suppress(ValueError, IndexError):
        return GpuSample(time.monotonic(), int(parts[0]), float(parts[1]) / 100, float(parts[2]))
    return None


@dataclass
class ProcessMonitor:
    """Measures groups of processes from the beginning to the end of a `with` block.

    cpu_seconds, rss_mib: by group. A process that ends meanwhile may be missing. polled: what `poll`, called each
    second, returned.
    """

    groups: Groups
    poll: Callable[[], float | None] | None = None
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    rss_mib: dict[str, float] = field(default_factory=dict)
    polled: list[float] = field(default_factory=list)
    start: float = 0.0
    end: float = 0.0

    def __enter__(self) -> ProcessMonitor:
        self._before = {group: _cpu_seconds(processes) for group, processes in self.groups.items()}
        self._machine = _machine_seconds()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self.start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.end = time.monotonic()
        self._done.set()
        self.cpu_seconds["machine"] = _machine_seconds() - self._machine
        for group, processes in self.groups.items():
            self.cpu_seconds[group] = _cpu_seconds(processes) - self._before[group]
            self.rss_mib[group] = _rss_mib(processes)
        self._thread.join()

    def cores(self) -> dict[str, float]:
        """Cores kept busy, by group; "machine" is everything that ran."""
        return {group: seconds / (self.end - self.start) for group, seconds in self.cpu_seconds.items()}

    def _poll(self) -> None:
        while self.poll is not None and not self._done.wait(1):
            with contextlib.suppress(OSError):
                if (found := self.poll()) is not None:
                    self.polled.append(found)


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _machine_seconds() -> float:
    """CPU seconds of everything since the machine started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _rss_mib(processes: Sequence[psutil.Process]) -> float:
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total / 2**20
