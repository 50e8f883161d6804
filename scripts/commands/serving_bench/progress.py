"""How far a run is: which point of how many, and about how long the rest takes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server.client import Report

EVERY_S = 5.0  # between two lines about the same wait


@dataclass
class Progress:
    """Counts points: the rows of a report, and the engines that run alone. Without `begin` it says nothing.

    clock: returns seconds. at_most: whether fewer points may be measured than are planned. done: points that are
    finished. dropped: planned points that will not be measured.
    """

    clock: Callable[[], float] = time.monotonic
    at_most: bool = False
    done: int = 0
    dropped: int = 0
    _planned: int = 0
    _start: float | None = None

    @property
    def total(self) -> int:
        """Points that are finished or still planned."""
        return max(self.done, self._planned - self.dropped)

    def begin(self, planned: int, least_s: float) -> str:
        """Start the clock. Returns a line that says what is to come.

        planned: points. least_s: seconds that each takes at least.
        """
        self._planned, self._start = planned, self.clock()
        return f"{planned} point{'s' if planned != 1 else ''} to measure, {duration(planned * least_s)} at least"

    def remaining(self, points: int) -> None:
        """Plan so many more points from here on, whatever was planned before."""
        self.dropped = self._planned - self.done - points

    def finished(self) -> str:
        """Count a point. Returns the beginning of its line: "point 3 of 20, about 4 min left: "."""
        self.done += 1
        if self._start is None:
            return ""
        left_s = (self.clock() - self._start) / self.done * (self.total - self.done)
        left = f", about {duration(left_s)} left" if self.done < self.total else ""
        return f"point {self.done} of {'at most ' if self.at_most else ''}{self.total}{left}: "

    @contextlib.contextmanager
    def expecting(self, points: int) -> Iterator[None]:
        """Take off what was planned for a `with` block and not measured in it, for example because a peer failed.

        Blocks may be nested.
        """
        before = self.done + self.dropped
        try:
            yield
        finally:
            self.dropped += points - (self.done + self.dropped - before)


@contextlib.contextmanager
def beating(show: Report, line: str) -> Iterator[None]:
    """Show the line every EVERY_S while a `with` block waits for something that tells nothing."""
    report, ended = waiting(show), threading.Event()

    def beat() -> None:
        while not ended.wait(EVERY_S):
            report(line)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def duration(seconds: float) -> str:
    """ "40 s", "4 min", "1 h 10 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def waiting(show: Report, clock: Callable[[], float] = time.monotonic) -> Report:
    """Return a report that shows a line with the seconds since now, if the line is new or EVERY_S have passed."""
    start, last, shown = clock(), "", 0.0

    def report(line: str) -> None:
        nonlocal last, shown
        now = clock()
        if line != last or now - shown >= EVERY_S:
            show(f"  {line}, {now - start:.0f} s")
            last, shown = line, now

    return report
