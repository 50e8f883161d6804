"""Forms of HTTP that TorchServe decides on: methods, chunks, codings, expectations. docs/api.md has them."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
from demo import SAMPLES
from server.client import Client

pytestmark = pytest.mark.e2e

SEVEN = (SAMPLES / "seven.png").read_bytes()
TEXT = b"A sentence."
PLAIN = "Content-Type: text/plain\r\n"


class Connection:
    """A socket to the inference port: what is sent is written out in the tests."""

    def __init__(self, client: Client) -> None:
        parsed = urlparse(client.inference)
        self.token = f"Authorization: Bearer {client.token('inference')}\r\n"
        self.socket = socket.create_connection((parsed.hostname, parsed.port or 80), timeout=30)
        self.stream = self.socket.makefile("rb")

    def close(self) -> None:
        self.stream.close()
        self.socket.close()

    def is_closed(self) -> bool:
        """Whether TorchServe has closed it, by either of two ways."""
        try:
            return self.stream.read() == b""
        except ConnectionResetError:
            return True

    def send(self, line: str, headers: str = "", body: bytes = b"") -> None:
        self.socket.sendall(f"{line} HTTP/1.1\r\nHost: a\r\n{self.token}{headers}\r\n".encode() + body)

    def answer(self, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers in lower case, body."""
        status = int(self.stream.readline().split()[1])
        headers = {}
        while line := self.stream.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", 0)) if has_body else 0
        return status, headers, self.stream.read(length)

    def ask(self, line: str, headers: str = "", body: bytes = b"") -> tuple[int, Any]:
        self.send(line, f"{headers}Content-Length: {len(body)}\r\n", body)
        status, _, answer = self.answer()
        return status, json.loads(answer) if answer else None


Connect = Callable[[], Connection]


@pytest.fixture
def connect(client: Client) -> Iterator[Connect]:
    """connect() -> a connection of its own."""
    with contextlib.ExitStack() as opened:
        yield lambda: opened.enter_context(contextlib.closing(Connection(client)))


@pytest.fixture
def wanted(client: Client) -> Any:
    return client.predict("sentences", TEXT, "text/plain").json()


def same(answer: tuple[int, Any], wanted: Any) -> None:
    assert answer[0] == 200
    np.testing.assert_allclose(answer[1], wanted, atol=1e-5)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "GET"])
def test_the_method_does_not_matter(connect: Connect, wanted: Any, method: str) -> None:
    """No handler sees it; a request without a body is refused by any."""
    connection = connect()
    same(connection.ask(f"{method} /predictions/sentences", PLAIN, TEXT), wanted)
    connection.send(f"{method} /predictions/sentences", "" if method == "GET" else "Content-Length: 0\r\n")
    status, _, body = connection.answer()
    assert (status, json.loads(body)["type"]) == (400, "EmptyRequest")


def test_head_gets_the_head_alone(connect: Connect) -> None:
    connection = connect()
    connection.send("HEAD /predictions/digits")
    status, headers, _ = connection.answer(has_body=False)
    assert (status, headers["content-type"]) == (400, "application/json")
    assert int(headers["content-length"]) > 0
    assert connection.is_closed()  # it is closed, as after every error
    connection = connect()
    connection.send("HEAD /ping")
    assert connection.answer(has_body=False)[0] == 200
    same_connection = connection.ask("GET /ping")
    assert same_connection == (200, {"status": "Healthy"})


def test_options_describes_torchserves_own_view(connect: Connect) -> None:
    status, described = connect().ask("OPTIONS /predictions/digits")
    assert (status, described["info"]["title"]) == (200, "RESTful API for: digits")
    assert connect().ask("OPTIONS /")[1]["info"]["title"] == "TorchServe APIs"
    assert connect().ask("OPTIONS *")[0] == 500


def test_chunks(connect: Connect, wanted: Any) -> None:
    """As `curl -T -` sends a body of unknown length; trailers are read and dropped."""
    connection = connect()
    for chunks in (
        b"b\r\nA sentence.\r\n0\r\n\r\n",
        b"1\r\nA\r\n5;x=y\r\n sent\r\n5\r\nence.\r\n0\r\nTrailer: x\r\n\r\n",
    ):
        connection.send("POST /predictions/sentences", f"{PLAIN}Transfer-Encoding: chunked\r\n", chunks)
        status, _, body = connection.answer()
        same((status, json.loads(body)), wanted)


def test_chunks_have_the_same_limit(connect: Connect) -> None:
    connection = connect()
    connection.send("POST /predictions/sentences", f"{PLAIN}Transfer-Encoding: chunked\r\n")
    chunk = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
    try:
        for _ in range(17):
            connection.socket.sendall(chunk)
        connection.socket.sendall(b"0\r\n\r\n")
    except OSError:  # it is closed while the rest is sent
        pass
    assert connection.answer()[0] == 413


def test_expectations(connect: Connect, wanted: Any) -> None:
    connection = connect()
    connection.send("POST /predictions/sentences", f"{PLAIN}Expect: 100-continue\r\nContent-Length: {len(TEXT)}\r\n")
    assert connection.answer()[0] == 100
    connection.socket.sendall(TEXT)
    status, _, body = connection.answer()
    same((status, json.loads(body)), wanted)
    for expectation, length, refused in (("100-continue", 99_999_999, 413), ("a miracle", 5, 417)):
        connection = connect()
        connection.send(
            "POST /predictions/sentences", f"{PLAIN}Expect: {expectation}\r\nContent-Length: {length}\r\n"
        )
        assert connection.answer() == (refused, {"content-length": "0"}, b"")


def test_compressed_bodies(connect: Connect, wanted: Any) -> None:
    for coding, body in (("gzip", gzip.compress(TEXT)), ("deflate", zlib.compress(TEXT))):
        answer = connect().ask("POST /predictions/sentences", f"{PLAIN}Content-Encoding: {coding}\r\n", body)
        same(answer, wanted)
    answer = connect().ask(
        "POST /predictions/digits", "Content-Encoding: gzip\r\nX-Top-K: 1\r\n", gzip.compress(SEVEN)
    )
    assert (answer[0], answer[1][0]["label"]) == (200, "7")
    bomb = gzip.compress(bytes(2**24 + 1))
    for coding, body, status in (
        ("gzip", bomb, 413),
        ("gzip", TEXT, 400),
        ("gzip", gzip.compress(TEXT)[:-1], 400),
        ("br", TEXT, 415),
        ("gzip, gzip", gzip.compress(gzip.compress(TEXT)), 415),
    ):
        headers = f"{PLAIN}Content-Encoding: {coding}\r\n"
        assert connect().ask("POST /predictions/sentences", headers, body)[0] == status, coding


def test_a_compressed_form_is_refused(connect: Connect) -> None:
    form = gzip.compress(b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nA sentence.\r\n--b--\r\n')
    headers = "Content-Type: multipart/form-data; boundary=b\r\nContent-Encoding: gzip\r\n"
    status, answer = connect().ask("POST /predictions/sentences", headers, form)
    assert (status, answer["type"]) != (200, "")
    assert status in (400, 415)


def test_answers_are_never_compressed(connect: Connect) -> None:
    connection = connect()
    connection.send(
        "POST /predictions/sentences",
        f"{PLAIN}Accept-Encoding: gzip, br\r\nContent-Length: {len(TEXT)}\r\n",
        TEXT,
    )
    status, headers, body = connection.answer()
    assert (status, "content-encoding" in headers) == (200, False)
    assert len(json.loads(body)) == 384


def test_a_connection_is_kept_after_answers_and_closed_after_errors(connect: Connect, wanted: Any) -> None:
    connection = connect()
    for _ in range(3):
        same(connection.ask("POST /predictions/sentences", PLAIN, TEXT), wanted)
    connection.send("POST /predictions/sentences", "Content-Length: 0\r\n")
    status, headers, _ = connection.answer()
    assert (status, headers["connection"]) == (400, "close")
    assert connection.is_closed()


def test_paths_of_v2_that_torchserve_answers(connect: Connect) -> None:
    """Only .../infer reaches a handler; all of them are offered behind /predictions/NAME/VERSION."""
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/digits", "/v2/models/digits/ready"):
        assert connect().ask(f"GET {path}")[0] == 404
        status, answer = connect().ask(f"GET /predictions/digits/1.0{path}")
        assert (status, isinstance(answer, dict)) == (200, True)
    for path in ("/v2/models/digits/versions/1.0/infer", "/v2/models/digits/config"):
        assert connect().ask(f"POST {path}", "", b"{}")[0] == 404
    status, answer = connect().ask("GET /predictions/digits/1.0/v2/models/sentences")
    assert (status, answer.keys()) == (404, {"error", "request_id"})
    assert connect().ask("GET /predictions/nobody/1.0/v2/models/nobody")[0] == 404


def test_v2_by_hand(connect: Connect, wanted: Any) -> None:
    """JSON, and JSON followed by raw bytes, on both paths."""
    described = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 4 + len(TEXT)}}
    head = json.dumps({"id": "7", "inputs": [described]}).encode()
    raw = head + len(TEXT).to_bytes(4, "little") + TEXT
    plain = json.dumps({"inputs": [{**described, "parameters": {}, "data": [TEXT.decode()]}]}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}\r\n"
    for path in ("/v2/models/sentences/infer", "/predictions/sentences/1.0/v2/models/sentences/infer"):
        for headers, body in (
            (f"Content-Type: application/octet-stream\r\n{length}", raw),
            (length, raw),
            ("Content-Type: application/json\r\n", plain),
            ("", plain),
        ):
            status, answer = connect().ask(f"POST {path}", headers, body)
            same((status, answer["outputs"][0]["data"]), wanted)


def test_curl_sends_a_body_of_unknown_length(client: Client, tmp_path: Path, wanted: Any) -> None:
    command = ["curl", "-sS", "-T", "-", "-H", f"Authorization: Bearer {client.token('inference')}"]
    url = f"{client.inference}/predictions/sentences"
    done = subprocess.run(
        [*command, "-H", "Content-Type: text/plain", url], input=TEXT, capture_output=True, timeout=60, check=True
    )
    np.testing.assert_allclose(json.loads(done.stdout), wanted, atol=1e-5)
