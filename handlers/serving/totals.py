"""Counters and histograms of one worker, added up between two reports.

TorchServe 0.12 learns of each value by a line of the worker's output, which it parses and writes into its own log.
Its histograms have fixed buckets, from 0.005 to 10 (its PrometheusHistogram.java names none, so the library's hold).
So the values of many batches are added up here. A histogram is reported as the series that Prometheus makes of one:
counters NAME_bucket with the label `le`, NAME_sum and NAME_count.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

Key = tuple[str, tuple[str, ...]]  # a metric's name, and the values of its labels
SUFFIXES = ("_bucket", "_sum", "_count")


class Totals:
    """What was counted and observed since the last report; all threads may add.

    Args:
        buckets: by histogram: the upper bounds of its buckets, ascending. One more bucket takes what is above.
    """

    def __init__(self, buckets: Mapping[str, Sequence[float]]) -> None:
        self.buckets = buckets
        self.bounds = {name: [*(f"{bound:g}" for bound in bounds), "+Inf"] for name, bounds in buckets.items()}
        self._lock = threading.Lock()
        self._counters: dict[Key, float] = {}
        self._histograms: dict[Key, tuple[list[int], list[float]]] = {}  # count by bucket; the sum

    def add(self, name: str, value: float, *labels: str) -> None:
        """Add `value` to a counter. 0 makes the counter appear in the next report."""
        with self._lock:
            self._counters[name, labels] = self._counters.get((name, labels), 0) + value

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Put `value` into its bucket of a histogram."""
        bucket = bisect_left(self.buckets[name], value)
        with self._lock:
            counts, total = self._histogram(name, labels)
            counts[bucket] += 1
            total[0] += value

    def show(self, name: str, *labels: str) -> None:
        """Make a histogram appear in the next report, with all its buckets, though nothing was observed."""
        with self._lock:
            self._histogram(name, labels)

    def take(self) -> list[tuple[str, tuple[str, ...], float]]:
        """Return (counter, labels, its growth) for all that has been added, and begin at zero again."""
        with self._lock:
            counters, self._counters = self._counters, {}
            histograms, self._histograms = self._histograms, {}
        grown = [(name, labels, value) for (name, labels), value in counters.items()]
        for (name, labels), (counts, total) in histograms.items():
            grown += self._grown(name, labels, counts, total[0])
        return grown

    def _histogram(self, name: str, labels: tuple[str, ...]) -> tuple[list[int], list[float]]:
        found = self._histograms.get((name, labels))
        if found is None:
            found = self._histograms[name, labels] = ([0] * len(self.bounds[name]), [0.0])
        return found

    def _grown(
        self, name: str, labels: tuple[str, ...], counts: list[int], total: float
    ) -> Iterator[tuple[str, tuple[str, ...], float]]:
        """Growth of a histogram's counters. A bucket counts what is in the smaller ones too, as Prometheus wants."""
        everything, so_far = sum(counts), 0
        for bound, count in zip(self.bounds[name], counts, strict=True):
            so_far += count
            if so_far or not everything:
                yield f"{name}_bucket", (*labels, bound), so_far
        yield f"{name}_sum", labels, round(total, 3)
        yield f"{name}_count", labels, everything
