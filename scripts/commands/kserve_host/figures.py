"""Figures of batches for Prometheus, with the names and labels that TorchServe gives them (docs/operations.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

import yaml
from prometheus_client import Gauge


class Figure:
    """One metric, as handlers/hosts/contexts.py wants it.

    It is a gauge of Prometheus in any case: its counters put an ending of their own behind the name, and the handlers
    name the series of a histogram themselves.
    """

    def __init__(self, name: str, kind: str, labels: Sequence[str]) -> None:
        self.adds, self.gauge = kind == "COUNTER", Gauge(name, name, labels)

    def add_or_update(self, value: float, dimension_values: Sequence[str]) -> None:
        """Add to a counter, or set a gauge."""
        labelled = self.gauge.labels(*dimension_values)
        if self.adds:
            labelled.inc(value)
        else:
            labelled.set(value)


class Figures:
    """All metrics of this process; models share them."""

    def __init__(self) -> None:
        self._made: dict[str, Figure] = {}
        self._labels = labels()

    def metric(self, name: str, kind: str) -> Figure | None:
        """Return the metric of this name, made when it is first asked for; None if there is no such metric."""
        if name not in self._labels:
            return None
        if name not in self._made:
            self._made[name] = Figure(name, kind, self._labels[name])
        return self._made[name]


def labels() -> Mapping[str, Sequence[str]]:
    """Return the names of the labels of each of the handlers' metrics."""
    declared = yaml.safe_load((files("handlers") / "metrics.yaml").read_text(encoding="utf-8"))["model_metrics"]
    return {metric["name"]: metric["dimensions"] for kind in declared.values() for metric in kind}
