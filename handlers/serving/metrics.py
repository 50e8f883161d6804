"""Counts, times and memory of a worker, for TorchServe's metrics endpoint and the log.

docs/operations.md says what each metric means. metrics.yaml declares them all for TorchServe.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from handlers import loading
from handlers.protocol import internal_errors
from handlers.protocol.context import Context
from handlers.protocol.errors import DeadlinePassed, NotFinite
from handlers.protocol.request import Request
from handlers.serving import worker
from handlers.serving.steps import Steps
from handlers.serving.totals import SUFFIXES, Totals
from handlers.serving.worker import Worker

logger = logging.getLogger(__name__)

REPORT_S = 1.0  # the least time between two reports
GAUGES_S = 60.0  # between two reports of the worker's memory, also if no request comes

COUNTERS = ("RequestsRefused", "RequestsFailed", "NonFiniteOutputs", "TokensUsed", "TokensComputed")
BY_KIND = "RequestErrors"
TIMES_MS = (0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 60_000)
HISTOGRAMS: Mapping[str, Sequence[float]] = {
    "BatchSize": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "BatchInputs": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    "BatchTime": TIMES_MS,
    "StepTime": TIMES_MS,
    "QueueTime": TIMES_MS,
}
STEPS = ("read", "prepare", "run", "write")
GAUGES = ("WorkerSeen", "WorkerMemory", "WorkerGPUMemory")


class BatchMetrics:
    """Adds up the figures of one worker's batches; from start() on, a thread reports them once per second.

    Metrics that the server's metrics_config does not declare are left out; the log names them once.

    Args:
        context: TorchServe's, of this worker.
        model: what the worker has loaded.
    """

    def __init__(self, context: Context, model: loading.Model[Any] | None = None) -> None:
        self.worker = Worker.of(context, model)
        self.totals = Totals(HISTOGRAMS)
        self._pending = threading.Event()
        self._reporting = threading.Lock()
        self._next_gauges = 0.0
        self._stopped = threading.Event()
        counters = (*COUNTERS, BY_KIND, *(name + suffix for name in HISTOGRAMS for suffix in SUFFIXES))
        self._metrics = _find(context.metrics, "COUNTER", counters) | _find(context.metrics, "GAUGE", GAUGES)
        missing = [name for name in (*counters, *GAUGES) if name not in self._metrics]
        if context.metrics is not None and missing:
            logger.warning(
                "not declared, so not reported: %s; point metrics_config at this package's metrics.yaml",
                ", ".join(missing),
            )

    def start(self) -> None:
        """Report from now on, beginning with zeros. What was counted before, as by a first run, is dropped."""
        if not self._metrics:
            return
        self.totals.take()
        for name in COUNTERS:
            self.totals.add(name, 0)
        for name in HISTOGRAMS:
            for step in STEPS if name == "StepTime" else (None,):
                self.totals.show(name, *([step] if step else []))
        self.flush()
        threading.Thread(target=self._report_for_ever, name="metrics", daemon=True).start()
        atexit.register(self.flush)

    def report(self, requests: Sequence[Request], inputs: int, steps: Steps) -> None:
        """Add one batch. Requests that asked for the model's description are not counted.

        Args:
            inputs: images or texts that ran.
        """
        served = [request for request in requests if request.error is not None or request.inputs]
        if not served:
            return
        self.totals.observe("BatchSize", len(served))
        self.totals.observe("BatchInputs", inputs)
        self.totals.observe("BatchTime", steps.elapsed_ns() / 1e6)
        for step, ms in steps.ms().items():
            self.totals.observe("StepTime", ms, step)
        for arrived in (request.arrived for request in served if request.arrived is not None):
            self.totals.observe("QueueTime", max(0.0, steps.began_ns / 1e6 - arrived * 1e3))
        self._count_errors([request for request in served if request.error is not None], inputs)
        self._pending.set()

    def stop(self) -> None:
        """Report what has been added, and nothing more."""
        self._stopped.set()
        self._pending.set()
        self.flush()
        atexit.unregister(self.flush)

    def count(self, name: str, value: float = 1) -> None:
        """Add to a counter that metrics.yaml declares with the labels of a model, and COUNTERS names."""
        self.totals.add(name, value)
        self._pending.set()

    def count_tokens(self, lengths: Sequence[int], pads: bool) -> None:
        """Add the tokens of texts that ran together.

        Args:
            lengths: tokens of each text.
            pads: whether the engine computed as many for each text as for the longest.
        """
        used = sum(lengths)
        self.totals.add("TokensUsed", used)
        self.totals.add("TokensComputed", max(lengths) * len(lengths) if pads else used)

    def flush(self) -> None:
        """Report at once what has been added; for a process that is about to end."""
        model = [self.worker.model, self.worker.version, "Model"]
        with self._reporting:
            for name, labels, value in self.totals.take():
                self._update(name, value, [*model, *labels])
            if time.monotonic() >= self._next_gauges:
                self._next_gauges = time.monotonic() + GAUGES_S
                self._report_gauges()

    def _count_errors(self, failing: Sequence[Request], inputs: int) -> None:
        kinds = Counter((one.error.status, type(one.error).__name__) for one in failing if one.error is not None)
        for (status, kind), count in kinds.items():
            self.totals.add(BY_KIND, count, str(status), kind)
            failed = status >= 500 and status != DeadlinePassed.status
            self.totals.add("RequestsFailed" if failed else "RequestsRefused", count)
        broken = sum(isinstance(answer, NotFinite) for request in failing for answer in request.answers)
        if broken:
            self.totals.add("NonFiniteOutputs", broken)
            logger.error("the model's outputs for %d of %d inputs are not finite (NaN or infinity)", broken, inputs)

    def _report_gauges(self) -> None:
        """The worker's memory, and its labels with the time: TorchServe goes on showing a worker that has ended."""
        me = self.worker
        labels = [me.model, me.version, "Model", me.name]
        self._update("WorkerSeen", int(time.time()), [*labels, me.engine, me.precision, me.device])
        self._update("WorkerMemory", worker.memory(), labels)
        on_gpu = worker.gpu_memory()
        if on_gpu is not None:
            self._update("WorkerGPUMemory", on_gpu, [*labels, me.device])

    def _update(self, name: str, value: float, labels: list[str]) -> None:
        if name in self._metrics:
            self._metrics[name].add_or_update(value, labels)

    def _report_for_ever(self) -> None:
        while not self._stopped.is_set():
            if self._pending.wait(GAUGES_S):
                time.sleep(REPORT_S)  # more batches come meanwhile
            if self._stopped.is_set():
                return
            self._pending.clear()
            try:
                self.flush()
            except BaseException as error:  # this thread has no other one to tell
                internal_errors.log_failure(error, "reporting metrics")


def _find(cache: Any, kind: str, names: Iterable[str]) -> dict[str, Any]:
    """TorchServe's objects for those of these metrics that the server declares."""
    if cache is None:
        return {}
    if hasattr(cache, "metric"):  # of a host without TorchServe: handlers/hosts/contexts.py
        asked = {name: cache.metric(name, kind) for name in names}
        return {name: metric for name, metric in asked.items() if metric is not None}
    from ts.metrics.metric_cache_errors import MetricsCacheKeyError
    from ts.metrics.metric_type_enum import MetricTypes

    found = {}
    for name in names:
        try:
            found[name] = cache.get_metric(name, MetricTypes[kind])
        except (MetricsCacheKeyError, KeyError):
            continue
    return found
