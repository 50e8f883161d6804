"""Counts and times of each batch, for TorchServe's metrics endpoint (declared in metrics.yaml) and the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from handlers.protocol.context import Context
from handlers.protocol.errors import NotFinite
from handlers.protocol.request import Request

logger = logging.getLogger(__name__)


COUNTERS = ("RequestsRefused", "RequestsFailed", "NonFiniteOutputs")
HISTOGRAMS = ("BatchSize", "BatchInputs", "BatchTime")


class BatchMetrics:
    """Reports batches of one model. Metrics that the server's metrics_config does not declare are left out."""

    def __init__(self, context: Context) -> None:
        self.labels = [context.model_name, "Model"]
        self.found = {name: _find(context.metrics, name, "COUNTER") for name in COUNTERS}
        self.found |= {name: _find(context.metrics, name, "HISTOGRAM") for name in HISTOGRAMS}
        missing = [name for name, metric in self.found.items() if metric is None]
        if context.metrics is not None and missing:
            logger.warning(
                "not declared, so not reported: %s; point metrics_config at this package's metrics.yaml",
                ", ".join(missing),
            )

    def report(self, requests: Sequence[Request], inputs: int, started: float) -> None:
        """Report one batch. Requests that asked for the model's description are not counted.

        Args:
            inputs: images or texts that ran.
            started: time.perf_counter() at the batch's arrival, in seconds.
        """
        served = [request for request in requests if request.error is not None or request.inputs]
        if not served:
            return
        elapsed_ms = round((time.perf_counter() - started) * 1e3, 3)
        for name, value in zip(HISTOGRAMS, (len(served), inputs, elapsed_ms), strict=True):
            self._add(name, value)
        statuses = [request.error.status for request in served if request.error is not None]
        failed = sum(status >= 500 for status in statuses)
        broken = sum(isinstance(answer, NotFinite) for request in served for answer in request.answers)
        for name, count in zip(COUNTERS, (len(statuses) - failed, failed, broken), strict=True):
            if count:
                self._add(name, count)
        if broken:
            logger.error("the model's outputs for %d of %d inputs are not finite (NaN or infinity)", broken, inputs)

    def _add(self, name: str, value: float) -> None:
        if self.found[name] is not None:
            self.found[name].add_or_update(value, self.labels)


def _find(cache: Any, name: str, kind: str) -> Any:
    if cache is None:
        return None
    if hasattr(cache, "metric"):  # of a host without TorchServe: handlers/hosts/contexts.py
        return cache.metric(name, kind)
    from ts.metrics.metric_cache_errors import MetricsCacheKeyError
    from ts.metrics.metric_type_enum import MetricTypes

    try:
        return cache.get_metric(name, MetricTypes[kind])
    except (MetricsCacheKeyError, KeyError):
        return None
