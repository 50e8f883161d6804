"""Spans of OpenTelemetry, as the SDK's exporter in memory keeps them."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from handlers.protocol.errors import InvalidInput
from handlers.protocol.interface import Interface
from handlers.protocol.reader import Reader
from handlers.serving import span_exporters, spans
from handlers.serving.handler import Handler
from handlers.serving.inputs import Inputs, Options
from handlers.serving.worker import Worker

if TYPE_CHECKING:
    from tests.unit.conftest import FakeContext

WORKER = Worker("m", "1.0", "W-9000-m_1.0", "fused", "fp16", "cuda0")
SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-00"
needs_sdk = pytest.mark.skipif(
    not (importlib.util.find_spec("opentelemetry") and importlib.util.find_spec("opentelemetry.sdk")),
    reason="needs the test extra's opentelemetry-sdk",
)


class Echo(Handler[Any, str]):
    def __init__(self) -> None:
        self.reader = Reader(Interface("a text", lambda media_type: True, 9))
        self.metrics = SimpleNamespace(report=lambda *arguments: None)  # type: ignore[assignment]

    def prepare(self, inputs: Inputs[object]) -> Inputs[str]:
        return inputs.each(self.one)

    def one(self, value: object, options: Options) -> str:
        if "bad" in str(value):
            raise InvalidInput("why")
        return str(value)

    def predict(self, inputs: Sequence[tuple[str, Options]]) -> list[object]:
        if any("broken" in text for text, _ in inputs):
            raise ValueError("ours")
        return [text for text, _ in inputs]


@pytest.fixture
def exported(context_for: Callable[..., FakeContext]) -> Callable[..., list[Any]]:
    """exported({text: its traceparent}) -> the spans of a batch of these texts."""
    pytest.importorskip("opentelemetry.sdk", reason="needs the test extra's opentelemetry-sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    def run(sent: dict[str, str]) -> list[Any]:
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        handler = Echo()
        handler.spans = spans.BatchSpans(provider, WORKER)
        headers = [{"content-length": "1", "url_path": "", "traceparent": trace} for trace in sent.values()]
        context = context_for(headers)
        context.set_response_header = lambda idx, key, value: None  # type: ignore[method-assign]
        context.request_ids = {index: f"uuid{index}" for index in range(len(sent))}
        handler.handle([{"body": text.encode()} for text in sent], context)
        return list(exporter.get_finished_spans())

    return run


def named(found: list[Any], name: str) -> list[Any]:
    return [span for span in found if span.name == name]


def test_a_batch_has_links_to_its_clients_and_a_child_per_step(exported: Callable[..., list[Any]]) -> None:
    begin = time.time_ns()
    found = exported({"a": SAMPLED, "b": "", "c": UNSAMPLED})
    (batch,) = named(found, "batch m")
    assert batch.parent is None
    assert [f"{link.context.trace_id:032x}" for link in batch.links] == [SAMPLED[3:35], UNSAMPLED[3:35]]
    assert batch.attributes["batch.requests"] == batch.attributes["batch.inputs"] == 3
    assert (batch.attributes["engine"], batch.attributes["device"]) == ("fused", "cuda0")
    steps = [span for span in found if span.parent and span.parent.span_id == batch.context.span_id]
    assert [step.name for step in steps] == ["read", "prepare", "run", "write"]
    times = [time for step in steps for time in (step.start_time, step.end_time)]
    assert [batch.start_time, *times, batch.end_time] == sorted([batch.start_time, *times, batch.end_time])
    assert begin <= batch.start_time <= batch.end_time <= time.time_ns() + 1e6


def test_a_request_has_a_span_in_its_clients_trace(exported: Callable[..., list[Any]]) -> None:
    found = exported({"a": SAMPLED, "b": "", "c": UNSAMPLED})
    (request,) = named(found, "predict m")  # the client of the other did not sample it
    (batch,) = named(found, "batch m")
    assert f"{request.context.trace_id:032x}-{request.parent.span_id:016x}" == SAMPLED[3:52]
    assert request.parent.is_remote
    assert [link.context.span_id for link in request.links] == [batch.context.span_id]
    assert request.attributes["request_id"] == "uuid0"
    assert request.attributes["http.response.status_code"] == 200


def test_errors_are_told_by_type_and_only_a_5xx_is_the_servers(exported: Callable[..., list[Any]]) -> None:
    found = named(exported({"bad": SAMPLED, "broken": SAMPLED, "fine": SAMPLED}), "predict m")
    told = [(span.attributes["http.response.status_code"], span.attributes.get("error.type")) for span in found]
    assert told == [(400, "InvalidInput"), (500, "InferenceFailed"), (200, None)]
    assert [span.status.is_ok for span in found] == [True, False, True]


def test_a_closed_handler_sends_its_last_spans_and_ends_the_exporter(
    context_for: Callable[..., FakeContext],
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="needs the test extra's opentelemetry-sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    handler = Echo()
    handler.metrics = SimpleNamespace(report=lambda *arguments: None, stop=lambda: None)  # type: ignore[assignment]
    handler.spans = spans.BatchSpans(provider, WORKER, span_exporters.end_with_process(provider))
    handler.handle([{"body": b"a"}], context_for([{"content-length": "1", "url_path": ""}]))
    assert not exporter.get_finished_spans()  # they wait for others
    handler.close()
    assert named(list(exporter.get_finished_spans()), "batch m")
    assert not any(thread.name in ("last spans", "OtelBatchSpanRecordProcessor") for thread in threading.enumerate())
    handler.close()


@pytest.mark.parametrize("asked", ["", "none", None, " , none"])
def test_none_are_made_unless_they_are_asked_for(
    asked: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)
    if asked is not None:
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", asked)
    assert spans.load(WORKER) is None
    assert caplog.text == ""


def test_without_the_package_a_worker_starts_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    assert spans.load(WORKER) is None
    assert "no spans, though OTEL_TRACES_EXPORTER asks for otlp: " in caplog.text


@needs_sdk
def test_an_exporter_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "nobodys")
    assert spans.load(WORKER) is None
    assert (
        "no installed package has the exporter 'nobodys'; pip install opentelemetry-exporter-nobodys" in caplog.text
    )
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setattr(logging.Logger, "warning", lambda *arguments: pytest.fail("it is turned off"))
    assert spans.load(WORKER) is None


CHILD = """
from handlers.protocol import adapters
from handlers.protocol.request import Request
from handlers.serving import span_exporters, spans
from handlers.serving.steps import Steps
from handlers.serving.worker import Worker
made = spans.load(Worker("m", "1.0", "w"))
made.report([Request(adapters.DEFAULT, ["a"], answers=[1])], 1, Steps())
"""


@needs_sdk
def test_the_standard_variables_set_it_up_and_the_end_of_the_process_loses_nothing() -> None:
    variables = {"OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "mine"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    span = json.loads(done.stdout)
    assert span["name"] == "batch m"
    assert span["resource"]["attributes"]["service.name"] == "mine"


@needs_sdk
def test_a_service_without_a_name_is_torchserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    attributes = span_exporters.provider_of([]).resource.attributes
    assert (attributes["service.name"], attributes["deployment.environment.name"]) == ("torchserve", "test")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine")
    assert span_exporters.provider_of([]).resource.attributes["service.name"] == "mine"
