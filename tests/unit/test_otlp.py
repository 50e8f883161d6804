"""Spans reach a collector by OTLP over HTTP, as the standard environment variables say."""

from __future__ import annotations

import gzip
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from handlers.serving import span_exporters
from tests.collector import Collector, running

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HTTP, GRPC = "otlp_proto_http", "otlp_proto_grpc"
CHILD = f"""
import logging, sys
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
from handlers.protocol import adapters
from handlers.protocol.request import Request
from handlers.protocol.request_ids import RequestIds
from handlers.serving import spans
from handlers.serving.steps import Steps
from handlers.serving.worker import Worker
made = spans.load(Worker("m", "1.0", "w"))
steps = Steps()
with steps("run"):
    pass
made.report([Request(adapters.DEFAULT, ["secret"], answers=[1], ids=RequestIds("id0", "", "{TRACE}"))], 1, steps)
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the test extra's OTLP exporter")
    with running() as made:
        yield made


def run(variables: dict[str, str]) -> tuple[str, float]:
    """What the child writes, and the seconds from its last batch to its end at most."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**kept, "OTEL_TRACES_EXPORTER": "otlp", **variables},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout + done.stderr, time.monotonic() - began


def test_spans_arrive_in_their_clients_trace(collector: Collector) -> None:
    log, _ = run(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=mine",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_SERVICE_NAME": "classifier",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }
    )
    found = {span.name: span for span in collector.spans()}
    assert found.keys() == {"batch m", "run", "predict m"}
    request, batch = found["predict m"], found["batch m"]
    assert f"00-{request.trace_id.hex()}-{request.parent_span_id.hex()}-01" == TRACE
    assert [link.span_id for link in request.links] == [batch.span_id]
    assert [f"00-{link.trace_id.hex()}-{link.span_id.hex()}-01" for link in batch.links] == [TRACE]
    assert found["run"].parent_span_id == batch.span_id
    assert (collector.resource["service.name"], collector.resource["deployment.environment.name"]) == (
        "classifier",
        "test",
    )
    path, headers, body = collector.received[0]
    assert (path, headers["x-tenant"], headers["content-encoding"]) == ("/v1/traces", "mine", "gzip")
    assert "spans go to the exporter otlp_proto_http" in log
    assert b"secret" not in gzip.decompress(body)


def test_without_a_protocol_the_exporter_that_is_installed_is_taken(collector: Collector) -> None:
    if importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc"):
        pytest.skip("the exporter for gRPC is installed, which goes first")
    log, _ = run({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.address}/elsewhere"})
    assert "spans go to the exporter otlp_proto_http" in log
    assert [path for path, _, _ in collector.received] == ["/elsewhere"]
    assert len(collector.spans()) == 3


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_TRACES_SAMPLER", "always_off"), ("OTEL_SDK_DISABLED", "true")]
)
def test_nothing_is_sent_if_the_variables_say_so(collector: Collector, variable: str, value: str) -> None:
    child = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, variable: value}
    if variable == "OTEL_SDK_DISABLED":
        with pytest.raises(subprocess.CalledProcessError, match="exit status 1"):  # load() returned None
            run(child)
    else:
        run(child)
    assert collector.received == []


def test_a_collector_that_hangs_does_not_keep_a_worker_from_ending(collector: Collector) -> None:
    """A worker whose GPU is lost must end at once, so that another one can start."""
    _, usual_s = run({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address})
    collector.hold.clear()
    _, hung_s = run({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address})
    assert hung_s < usual_s + span_exporters.GOODBYE_S + 2


def test_a_collector_that_is_away_or_refuses_fails_nothing(collector: Collector) -> None:
    collector.status = 500
    log, _ = run({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address})
    assert "secret" not in log
    assert "Failed to export" in log
    away, _ = run({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    assert "secret" not in away
    assert "spans go to" in away


@pytest.mark.parametrize(
    ("variables", "installed", "chosen"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, {HTTP, GRPC}, HTTP),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, {HTTP, GRPC}, GRPC),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            {HTTP},
            HTTP,
        ),
        ({}, {HTTP, GRPC}, GRPC),  # as OpenTelemetry for Python
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": ""}, {HTTP}, HTTP),
        ({}, {GRPC}, GRPC),
    ],
)
def test_otlp_is_the_exporter_of_the_protocol(
    variables: dict[str, str], installed: set[str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert span_exporters.name_of("otlp", installed) == chosen
    assert span_exporters.name_of("console", {*installed, "console"}) == "console"
    for name in installed:
        assert span_exporters.name_of(name, installed) == name


@pytest.mark.parametrize(
    ("protocol", "installed", "said"),
    [
        ("http/json", {HTTP, GRPC}, "wanted: http/protobuf or grpc"),
        ("grpc", {HTTP}, "pip install opentelemetry-exporter-otlp-proto-grpc"),
        ("", set(), "pip install opentelemetry-exporter-otlp-proto-http"),
    ],
)
def test_a_protocol_without_an_exporter_is_named(
    protocol: str, installed: set[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with pytest.raises(LookupError, match=said):
        span_exporters.name_of("otlp", installed)
