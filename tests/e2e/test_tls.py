"""TLS through nginx in front of a real TorchServe: what passes, what is refused, what cannot be reached."""

from __future__ import annotations

import http.client
import json
import re
import secrets
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.programs import SAMPLES, Client, Front, Server, front, listens, request, until

pytestmark = pytest.mark.e2e

SEVEN = (SAMPLES / "seven.png").read_bytes()
PREDICT = "/predictions/digits"
GRPC = "/org.pytorch.serve.grpc"


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with front(server, tmp_path_factory.mktemp("proxy")) as running:
        yield running


@pytest.fixture
def token(client: Client) -> str:
    return client.token("inference")


def context(proxy: Front) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(proxy.tls / "tls.crt"))


def ask(
    proxy: Front,
    path: str,
    key: str,
    body: bytes | None = SEVEN,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPSConnection("localhost", proxy.port, timeout=60, context=context(proxy))
    try:
        sent = {"Authorization": f"Bearer {key}", **(headers or {})}
        connection.request(method, path, body, {name: value for name, value in sent.items() if value != "Bearer "})
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.headers.items()}
    finally:
        connection.close()


def label(answer: tuple[int, bytes, dict[str, str]]) -> str:
    assert answer[0] == 200, answer[1]
    return str(json.loads(answer[1])[0]["label"])


def test_answers_arrive_through_tls(proxy: Front, token: str) -> None:
    assert label(ask(proxy, PREDICT, token)) == "7"
    body = json.dumps({"instances": ["A sentence."]}).encode()
    status, answer, _ = ask(proxy, "/v1/models/sentences:predict", token, body)
    assert (status, len(json.loads(answer)["predictions"][0])) == (200, 384)
    assert ask(proxy, "/ping", token, None, "GET")[0] == 200


def test_the_time_in_the_queue_counts_from_nginx(proxy: Front, client: Client, token: str) -> None:
    """What a client says of it is replaced; a request that comes past nginx does not count."""
    requests, count, total_ms = settled(client)
    assert label(ask(proxy, PREDICT, token, headers={"X-Request-Start": f"t={time.time() - 900:.3f}"})) == "7"
    assert client.predict("digits", SEVEN).status == 200
    until(lambda: figures(client)[0] == requests + 2)
    assert figures(client)[1] == count + 1
    assert 0 <= figures(client)[2] - total_ms < 60_000


def settled(client: Client) -> list[float]:
    """The figures when nothing of earlier tests is on its way any more: a worker reports once per second."""
    known, since = figures(client), time.monotonic()
    while time.monotonic() - since < 3:
        time.sleep(0.3)
        if (now := figures(client)) != known:
            known, since = now, time.monotonic()
    return known


def figures(client: Client) -> list[float]:
    """Requests for digits that were answered, and the count and the sum of their times in the queue."""
    lines = request("GET", f"{client.config['metrics_address']}/metrics").body.decode().splitlines()
    mine = [line.rpartition(" ") for line in lines if 'ModelName="digits"' in line]
    return [
        sum(float(value) for head, _, value in mine if head.startswith(f"{name}{{"))
        for name in ("BatchSize_sum", "QueueTime_count", "QueueTime_sum")
    ]


def test_chunked_bodies_arrive_whole(proxy: Front, token: str) -> None:
    connection = http.client.HTTPSConnection("localhost", proxy.port, timeout=60, context=context(proxy))
    parts = iter([SEVEN[:100], SEVEN[100:]])
    connection.request("POST", PREDICT, parts, {"Authorization": f"Bearer {token}"}, encode_chunked=True)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())[0]["label"]) == (200, "7")
    connection.close()


def test_only_tls_is_spoken(proxy: Front, token: str) -> None:
    with socket.create_connection(("localhost", proxy.port), timeout=10) as plain:
        plain.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b" 400 " in plain.makefile("rb").readline()
    with (
        socket.create_connection(("localhost", proxy.port), timeout=10) as raw,
        context(proxy).wrap_socket(raw, server_hostname="localhost") as spoken,
    ):
        assert spoken.version() in ("TLSv1.2", "TLSv1.3")
    assert "nginx/" not in ask(proxy, PREDICT, token)[2]["server"]


def test_a_token_is_wanted_behind_it_too(proxy: Front, client: Client) -> None:
    for key in ("", "wrong", client.token("management")):
        status, answer, _ = ask(proxy, PREDICT, key)
        assert (status, json.loads(answer)["type"]) == (400, "InvalidKeyException")


def test_bodies_have_the_limit_of_torchserve(proxy: Front, client: Client, token: str) -> None:
    limit = int(client.config["max_request_size"])
    assert ask(proxy, PREDICT, token, bytes(limit))[0] == 415  # arrived, and is no image
    status, answer, _ = ask(proxy, PREDICT, token, bytes(limit + 1))
    assert (status, json.loads(answer)["type"]) == (413, "RequestTooLarge")


def test_no_web_socket(proxy: Front, token: str) -> None:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    headers["Sec-WebSocket-Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    assert ask(proxy, PREDICT, token, None, "GET", headers)[0] in (400, 405)
    assert label(ask(proxy, PREDICT, token, headers=headers)) == "7"  # a request like any other


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/models"),
        ("GET", "/models/digits"),
        ("POST", "/models?url=digits.mar"),
        ("PUT", "/models/digits?min_worker=0"),
        ("DELETE", "/models/digits"),
        ("POST", "/workflows?url=x"),
        ("GET", "/token?type=inference"),
        ("GET", "/metrics"),
        ("OPTIONS", "/"),
        ("POST", "/invocations"),
        ("GET", "//models"),
        ("GET", "/predictions/../models"),
        ("GET", "/predictions/%2e%2e/models"),
        ("GET", "/predictions/digits/../../models"),
        ("GET", "http://127.0.0.1/models"),
    ],
)
def test_management_has_no_way_through(proxy: Front, client: Client, method: str, path: str) -> None:
    for key in (client.token("management"), client.token("inference")):
        status, answer, _ = ask(proxy, path, key, None, method)
        assert (status, json.loads(answer)["type"]) == (404, "UnknownPath")


def test_grpc_through_tls(proxy: Front, token: str) -> None:
    grpc = pytest.importorskip("grpc", reason="needs the test extra's grpcio")
    credentials = grpc.ssl_channel_credentials((proxy.tls / "tls.crt").read_bytes())
    with grpc.secure_channel(f"localhost:{proxy.port}", credentials) as channel:
        call = channel.unary_unary(f"{GRPC}.inference.InferenceAPIsService/Predictions")
        sent = field(1, b"digits") + field(3, field(1, b"data") + field(2, SEVEN))
        answer = call(sent, metadata=(("authorization", f"Bearer {token}"),), timeout=60)
        assert json.loads(answer[answer.index(b"[") :])[0]["label"] == "7"
        with pytest.raises(grpc.RpcError) as refused:
            call(sent, metadata=(("authorization", "Bearer wrong"),), timeout=60)
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
        manage = channel.unary_unary(f"{GRPC}.management.ManagementAPIsService/ListModels")
        with pytest.raises(grpc.RpcError) as unknown:
            manage(b"", metadata=(("authorization", f"Bearer {token}"),), timeout=60)
        assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, as protobuf encodes it."""
    length, size = b"", len(content)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_keys_of_clients_stand_for_the_token(server: Server, tmp_path: Path, token: str) -> None:
    """A key works, TorchServe's own token from outside does not, and a changed file is taken while nginx runs."""
    first, second = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    keys = tmp_path / "keys"
    keys.write_text(f"# of the first client\n{first}\n", encoding="utf-8")
    with front(server, tmp_path, "--keys", str(keys)) as proxy:
        assert label(ask(proxy, PREDICT, first)) == "7"
        for key in ("", token, second, first[:-1], first + "A", first.swapcase()):
            assert ask(proxy, PREDICT, key)[0] == 400
        keys.write_text(f"{second}\n", encoding="utf-8")
        until(lambda: ask(proxy, PREDICT, second)[0] == 200)
        until(lambda: ask(proxy, PREDICT, first)[0] == 400)
        assert not any(key in proxy.log for key in (first, second, token))


def test_a_request_under_way_is_answered_after_sigterm(server: Server, tmp_path: Path, token: str) -> None:
    """nginx refuses new connections, answers what it has, and ends; the file that drain waits for is gone then."""
    with front(server, tmp_path) as proxy:
        with (
            socket.create_connection(("localhost", proxy.port), timeout=30) as raw,
            context(proxy).wrap_socket(raw, server_hostname="localhost") as slow,
        ):
            head = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            slow.sendall(f"{head}Content-Length: {len(SEVEN)}\r\n\r\n".encode() + SEVEN[:50])
            until(lambda: label(ask(proxy, PREDICT, token)) == "7")
            proxy.process.send_signal(signal.SIGTERM)
            until(lambda: not listens(proxy.port))
            assert (proxy.folder / "nginx" / "nginx.pid").exists()
            slow.sendall(SEVEN[50:])
            assert b" 200 " in slow.makefile("rb").readline()
        proxy.process.wait(timeout=20)
        assert not (proxy.folder / "nginx" / "nginx.pid").exists()
        assert proxy.process.returncode == 0


def test_each_request_is_one_line_of_json(server: Server, tmp_path: Path, token: str) -> None:
    with front(server, tmp_path) as proxy:
        ask(proxy, PREDICT, token)
        ask(proxy, f"{PREDICT}/1.0/a-secret-path?a-secret-query=1", token)
        ask(proxy, "/models/a-secret-name", "a-secret-token")
        until(lambda: len(logged(proxy)) >= 3)
        lines = [json.loads(line) for line in logged(proxy)]
        assert [(line["model"], line["status"]) for line in lines] == [("digits", 200), ("digits", 404), ("", 404)]
        assert "secret" not in proxy.log
        assert all(re.fullmatch(r"[0-9a-f-]{36}", line["request_id"]) for line in lines if line["status"] == 200)
    access = (server.folder / "logs" / "access_log.log").read_text(encoding="utf-8")
    assert "/1.0/a-secret-path HTTP/1.1" in access  # TorchServe's own log has the path
    assert "a-secret-query" not in access


def logged(proxy: Front) -> list[str]:
    return [line for line in proxy.log.splitlines() if not line.startswith("note: ")]
