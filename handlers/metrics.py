"""One batch's figures for TorchServe's metrics endpoint; metrics.yaml declares them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from handlers.requests import Context, Request

logger = logging.getLogger(__name__)


class BatchMetrics:
    """Reports batches of one model. Metrics that the server's metrics_config does not declare are left out."""

    def __init__(self, context: Context) -> None:
        self.labels = [context.model_name, "Model"]
        self.refused = _find(context.metrics, "RequestsRefused", "COUNTER")
        names = ("BatchSize", "BatchInputs", "BatchTime")
        self.histograms = [_find(context.metrics, name, "HISTOGRAM") for name in names]
        if context.metrics is not None and None in (self.refused, *self.histograms):
            logger.warning("batch metrics are not declared: point metrics_config at this package's metrics.yaml")

    def report(self, requests: Sequence[Request], inputs: int, started: float) -> None:
        """One batch is done. inputs: images or texts that ran; started: perf_counter() at the batch's arrival."""
        served = [request for request in requests if request.description is None]
        if not served:
            return
        elapsed_ms = round((time.perf_counter() - started) * 1e3, 3)
        for metric, value in zip(self.histograms, (len(served), inputs, elapsed_ms), strict=True):
            if metric is not None:
                metric.add_or_update(value, self.labels)
        refused = sum(request.error is not None for request in served)
        if refused and self.refused is not None:
            self.refused.add_or_update(refused, self.labels)


def _find(cache: Any, name: str, kind: str) -> Any:
    if cache is None:
        return None
    from ts.metrics.metric_cache_errors import MetricsCacheKeyError
    from ts.metrics.metric_type_enum import MetricTypes

    try:
        return cache.get_metric(name, MetricTypes[kind])
    except (MetricsCacheKeyError, KeyError):
        return None
