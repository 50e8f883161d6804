"""Spans of a real worker reach a collector: TorchServe hands its environment on, and the client's trace is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from server import tokens

from tests.collector import Collector, running
from tests.e2e.programs import SAMPLES, Server, request, until

pytestmark = pytest.mark.e2e

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SEVEN = (SAMPLES / "seven.png").read_bytes()


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the test extra's OTLP exporter")
    with running() as made:
        yield made


@pytest.fixture
def traced(
    collector: Collector, model_store: Path, other_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A server whose environment names the collector."""
    variables = {"TRACES_EXPORTER": "otlp", "EXPORTER_OTLP_ENDPOINT": collector.address, "BSP_SCHEDULE_DELAY": "200"}
    for name, value in {**variables, "SERVICE_NAME": "classifier"}.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    server = Server(tmp_path / "traced", other_config, model_store, ["digits=digits.mar"])
    server.folder.mkdir()
    server.start()
    try:
        asked = {"digits": lambda client: client.predict("digits", SEVEN).status == 200}
        server.wait(asked, timeout_s=120, report=print)
        yield server
    finally:
        server.stop()


def test_a_request_has_a_span_in_its_clients_trace(collector: Collector, traced: Server) -> None:
    headers = tokens.bearer(traced.client.token("inference")) | {"traceparent": TRACE}
    answer = request("POST", f"{traced.client.inference}/predictions/digits", SEVEN, headers)
    assert answer.status == 200
    until(lambda: any(span.name == "predict digits" for span in collector.spans()))
    (span,) = [span for span in collector.spans() if span.name == "predict digits"]
    assert f"00-{span.trace_id.hex()}-{span.parent_span_id.hex()}-01" == TRACE
    told = {item.key: item.value for item in span.attributes}
    assert told["http.response.status_code"].int_value == 200
    ids = {name.lower(): value for name, value in answer.headers.items()}
    assert told["request_id"].string_value == ids["x-request-id"]
    assert collector.resource["service.name"] == "classifier"
    assert "spans go to the exporter otlp_proto_" in traced.log.read_text(encoding="utf-8", errors="replace")
