"""A client's ids through a real TorchServe: in the answer, in an error's body, and in the log line of the error."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlparse

import pytest

from tests.e2e.programs import SAMPLES, Client, Server, until

pytestmark = pytest.mark.e2e

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SEVEN = (SAMPLES / "seven.png").read_bytes()


def post(client: Client, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], Any]:
    """Return status, headers by lower-case name, and the parsed body."""
    parsed = urlparse(client.inference)
    connection = http.client.HTTPConnection(str(parsed.hostname), parsed.port, timeout=60)
    try:
        connection.request("POST", path, body, {"Authorization": f"Bearer {client.token('inference')}", **headers})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, json.loads(answer.read())
    finally:
        connection.close()


def log(server: Server) -> str:
    return (server.folder / "logs" / "model_log.log").read_text(encoding="utf-8")


def test_ids_come_back_with_a_good_answer(client: Client) -> None:
    status, headers, _ = post(client, "/predictions/digits", SEVEN, {"X-Request-Id": "mine-1", "traceparent": TRACE})
    assert status == 200
    assert (headers["x-client-request-id"], headers["traceparent"]) == ("mine-1", TRACE)
    assert headers["x-request-id"] not in ("", "mine-1")  # TorchServe's own


@pytest.mark.parametrize("path", ["/predictions/digits", "/v2/models/digits/infer", "/v1/models/digits:predict"])
def test_an_error_is_found_in_the_log_by_any_of_its_ids(server: Server, client: Client, path: str) -> None:
    mine = path.strip("/").replace("/", ".").replace(":", ".")
    status, headers, body = post(client, path, b"no image", {"X-Request-Id": mine, "traceparent": TRACE})
    assert 400 <= status < 500
    assert (body["request_id"], body["client_request_id"]) == (headers["x-request-id"], mine)
    line = f"request {body['request_id']}, client's id {mine}, trace {TRACE[3:35]}: {status} "
    until(lambda: line in log(server))


@pytest.mark.parametrize(
    "sent", ["Zq9Planted id", "Zq9Planted" * 20, "Zq9Planted\tid", 'Zq9Planted"id', "[METRICS]Zq9Planted"]
)
def test_an_id_that_could_do_harm_comes_back_nowhere(server: Server, client: Client, sent: str) -> None:
    status, headers, body = post(client, "/predictions/digits", b"no image", {"X-Request-Id": sent})
    assert 400 <= status < 500
    assert "x-client-request-id" not in headers
    assert "client_request_id" not in body
    until(lambda: f"request {body['request_id']}: {status} " in log(server))
    for path in (server.folder / "logs").glob("*.log"):
        assert "Zq9Planted" not in path.read_text(encoding="utf-8")
