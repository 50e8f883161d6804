"""How long each part of a worker's start takes: one line in the log when the worker is ready.

A load begins with `begin` and ends with `end`, in one thread. In between `phase` measures parts, and does nothing if
no load has begun in its thread. A part within a part counts for itself alone, so all parts together are the whole.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

IMPORTS, OTHER = "imports", "other"
LONGEST_S = 900.0  # an older process did something else before it loaded a model


class Phases:
    """The parts of one load.

    Args:
        before_s: seconds from the start of the process to now, in which it imported; 0 if that is not known.
    """

    def __init__(self, before_s: float = 0.0) -> None:
        self.seconds: dict[str, float] = {IMPORTS: before_s} if before_s else {}
        self.began = self._since = time.monotonic()
        self._open = [OTHER]

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time as `name`, without what other phases in it count as theirs."""
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def described(self) -> dict[str, float]:
        """Return the seconds of the whole as "ready", and of its parts in their order, rounded to hundredths."""
        self._count()
        parts = {name: seconds for name, seconds in self.seconds.items() if name != OTHER}
        every = {"ready": sum(self.seconds.values()), **parts, OTHER: self.seconds.get(OTHER, 0.0)}
        return {name: round(seconds, 2) for name, seconds in every.items()}

    def _count(self) -> None:
        now = time.monotonic()
        self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now


_current: ContextVar[Phases | None] = ContextVar("phases", default=None)


def begin(*, is_worker: bool) -> None:
    """Begin a load in this thread.

    Args:
        is_worker: whether the process was started for this load. Its imports count then.
    """
    _current.set(Phases(age_s() if is_worker else 0.0))


def phase(name: str) -> contextlib.AbstractContextManager[None]:
    """Return a context whose time counts as `name`."""
    phases = _current.get()
    return contextlib.nullcontext() if phases is None else phases.phase(name)


def end() -> dict[str, float]:
    """End the load, and return its seconds by phase, as `Phases.described`; {} if none has begun."""
    phases = _current.get()
    _current.set(None)
    return {} if phases is None else phases.described()


def line(seconds: dict[str, float]) -> str:
    """Return what `end` returned as "ready after 8.1 s: imports 2.9, weights 1.2, other 0.1"."""
    parts = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if name != "ready")
    return f"ready after {seconds['ready']:.1f} s: {parts}"


def age_s(proc: Path = Path("/proc")) -> float:
    """Return the seconds since this process started; 0 if Linux does not say, or if it is above LONGEST_S.

    Source: proc(5), field 22 of /proc/PID/stat.
    """
    try:
        after_name = (proc / "self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        started_s = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
        age = float((proc / "uptime").read_text(encoding="ascii").split()[0]) - started_s
    except (OSError, ValueError, IndexError):
        return 0.0
    return age if 0 < age < LONGEST_S else 0.0
