"""Figures of batches for Prometheus, under the names that TorchServe gives them (docs/operations.md)."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Counter, Histogram

LABELS = ("ModelName", "Level")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # requests or inputs
TIMES_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Figure:
    """One metric, as handlers/hosts/contexts.py wants it."""

    def __init__(self, name: str, kind: str) -> None:
        self.counter = Counter(name, name, LABELS) if kind == "COUNTER" else None
        buckets = TIMES_MS if name.endswith("Time") else SIZES
        self.histogram = None if self.counter else Histogram(name, name, LABELS, buckets=buckets)

    def add_or_update(self, value: float, dimension_values: Sequence[str]) -> None:
        """Count, or observe, a value."""
        if self.counter is not None:
            self.counter.labels(*dimension_values).inc(value)
        elif self.histogram is not None:
            self.histogram.labels(*dimension_values).observe(value)


class Figures:
    """All metrics of this process; models share them."""

    def __init__(self) -> None:
        self._made: dict[str, Figure] = {}

    def metric(self, name: str, kind: str) -> Figure:
        """Return the metric of this name; it is made when it is first asked for."""
        if name not in self._made:
            self._made[name] = Figure(name, kind)
        return self._made[name]
