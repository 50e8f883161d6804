"""Spans of OpenTelemetry, if the environment asks for them and the package opentelemetry-sdk is installed.

The standard environment variables set them up: OTEL_TRACES_EXPORTER turns them on; OTEL_EXPORTER_OTLP_*,
OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_* and OTEL_SDK_DISABLED mean what
opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from handlers.protocol.request import Request
from handlers.serving import span_exporters
from handlers.serving.steps import Steps
from handlers.serving.worker import Worker

logger = logging.getLogger(__name__)

NAME = "torchserve-fast-handlers"


class BatchSpans:
    """Makes the spans of a worker's batches.

    A batch has a span of its own, with a child per step, and links to the spans of its clients. Each request with a
    traceparent also has a span in its client's trace, with a link to the batch.

    Args:
        provider: an opentelemetry.sdk.trace.TracerProvider.
        worker: whose labels the batches' spans have.
        end: sends the last spans, and ends the provider; None for the provider's own.
    """

    def __init__(self, provider: Any, worker: Worker, end: Callable[[], None] | None = None) -> None:
        self._end = provider.shutdown if end is None else end
        self.tracer = provider.get_tracer(NAME)
        self.model = worker.model
        self.attributes = {
            "model.name": worker.model,
            "model.version": worker.version,
            "worker.name": worker.name,
            "engine": worker.engine,
            "precision": worker.precision,
            "device": worker.device,
        }

    def report(self, requests: Sequence[Request], inputs: int, steps: Steps) -> None:
        """Make the spans of one batch that has been answered.

        Args:
            inputs: images or texts that ran.
        """
        from opentelemetry import trace
        from opentelemetry.context import Context

        end = steps.began_ns + steps.elapsed_ns()
        traced = [(request, parent_of(request)) for request in requests if request.ids.traceparent]
        batch = self.tracer.start_span(
            f"batch {self.model}",
            context=Context(),
            kind=trace.SpanKind.CONSUMER,
            attributes={**self.attributes, "batch.requests": len(requests), "batch.inputs": inputs},
            links=[trace.Link(parent) for _, parent in traced],
            start_time=steps.began_ns,
        )
        inside = trace.set_span_in_context(batch)
        for step, (begin, done) in steps.spans.items():
            child = self.tracer.start_span(step, context=inside, start_time=steps.began_ns + begin)
            child.end(steps.began_ns + done)
        for request, parent in traced:
            self._report_request(request, parent, batch, (steps.began_ns, end))
        batch.end(end)

    def close(self) -> None:
        """Send the spans that wait, and make no more."""
        self._end()

    def _report_request(self, request: Request, parent: Any, batch: Any, times: tuple[int, int]) -> None:
        from opentelemetry import trace

        status = request.error.status if request.error else 200
        span = self.tracer.start_span(
            f"predict {self.model}",
            context=trace.set_span_in_context(trace.NonRecordingSpan(parent)),
            kind=trace.SpanKind.SERVER,
            attributes={**request.ids.fields(), "inputs": len(request.inputs), "http.response.status_code": status},
            links=[trace.Link(batch.get_span_context())],
            start_time=times[0],
        )
        if request.error:
            span.set_attribute("error.type", type(request.error).__name__)
        if status >= 500:  # by OpenTelemetry's conventions a 4xx is no error of the server
            span.set_status(trace.StatusCode.ERROR)
        span.end(times[1])


def parent_of(request: Request) -> Any:
    """Return the opentelemetry.trace.SpanContext that the request's traceparent names."""
    from opentelemetry.trace import SpanContext, TraceFlags

    _, trace_id, span_id, flags = request.ids.traceparent.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def load(worker: Worker) -> BatchSpans | None:
    """Return what makes the spans; None if none are asked for, or, with a warning, if they cannot be made."""
    asked = span_exporters.asked_for()
    if not asked:
        return None
    try:
        names = span_exporters.resolved(asked)
        provider = span_exporters.provider_of(names)
        spans = BatchSpans(provider, worker, span_exporters.end_with_process(provider))
    except Exception as error:  # an exporter may fail in its own way, and answers matter more than spans
        logger.warning("no spans, though OTEL_TRACES_EXPORTER asks for %s: %s", ",".join(asked), error)
        return None
    logger.info("spans go to the exporter %s", ",".join(names))
    return spans
