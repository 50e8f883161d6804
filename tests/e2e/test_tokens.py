"""Each API wants its own token, over REST and gRPC, and neither lets the server fetch anything from elsewhere."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.programs import Client, request
from tests.e2e.test_tls import GRPC, field

pytestmark = pytest.mark.e2e

MANAGEMENT = (
    ("GET", "/models"),
    ("GET", "/models/digits"),
    ("GET", "/models/digits?customized=true"),
    ("GET", "/models/digits/all?customized=true"),
    ("POST", "/models?url=digits.mar&model_name=more"),
    ("PUT", "/models/digits?min_worker=2"),
    ("PUT", "/models/digits/1.0/set-default"),
    ("DELETE", "/models/digits"),
    ("GET", "/workflows"),
    ("POST", "/workflows?url=digits.mar"),
    ("GET", "/token?type=inference"),
)
INFERENCE = (
    ("POST", "/predictions/digits"),
    ("POST", "/predictions/digits/1.0"),
    ("POST", "/v1/models/digits:predict"),
    ("POST", "/v2/models/digits/infer"),
    ("POST", "/invocations"),
    ("POST", "/models/digits/invoke"),
    ("POST", "/explanations/digits"),
    ("POST", "/wfpredict/any"),
    ("GET", "/ping"),
)
GRPC_INFERENCE = ("Ping", "Predictions", "StreamPredictions")
GRPC_MANAGEMENT = ("ListModels", "DescribeModel", "RegisterModel", "ScaleWorker", "SetDefault", "UnregisterModel")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


@pytest.mark.parametrize(("method", "path"), MANAGEMENT)
def test_management_wants_its_own_token(client: Client, method: str, path: str) -> None:
    for key in ("", "wrong", client.token("inference")):
        answer = request(method, f"{client.management}{path}", headers=bearer(key))
        assert (answer.status, answer.json()["type"]) == (400, "InvalidKeyException"), path
    assert client.describe("digits")["minWorkers"] == 1


@pytest.mark.parametrize(("method", "path"), INFERENCE)
def test_inference_wants_its_own_token(client: Client, method: str, path: str) -> None:
    for key in ("", "wrong", client.token("management")):
        body = b"x" if method == "POST" else None
        answer = request(method, f"{client.inference}{path}", body, headers=bearer(key))
        assert (answer.status, answer.json()["type"]) == (400, "InvalidKeyException"), path


@pytest.fixture
def grpc() -> Any:
    return pytest.importorskip("grpc", reason="needs the test extra's grpcio")


def call(grpc: Any, client: Client, kind: str, name: str, key: str, message: bytes = b"") -> Any:
    """The status with which a call is refused, or None."""
    address = f"{client.config[f'grpc_{kind}_address']}:{client.config[f'grpc_{kind}_port']}"
    with grpc.insecure_channel(address) as channel:
        path = f"{GRPC}.{kind}.{kind.capitalize()}APIsService/{name}"
        start = channel.unary_stream if name.startswith("Stream") else channel.unary_unary
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        try:
            answer = start(path)(message, metadata=metadata, timeout=60)
            list(answer)
        except grpc.RpcError as error:
            return error.code()
    return None


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("inference", name) for name in GRPC_INFERENCE), *(("management", name) for name in GRPC_MANAGEMENT)],
)
def test_grpc_wants_the_token_of_its_api(grpc: Any, client: Client, kind: str, name: str) -> None:
    other = "management" if kind == "inference" else "inference"
    for key in ("", "wrong", client.token(other)):
        assert call(grpc, client, kind, name, key, field(1, b"digits")) == grpc.StatusCode.PERMISSION_DENIED
    assert client.describe("digits")["minWorkers"] == 1


@pytest.fixture
def bait() -> Iterator[tuple[int, list[object]]]:
    """A port that notes who connects."""
    came: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        ends = threading.Event()

        def listen() -> None:
            while not ends.is_set():
                try:
                    connection, who = listening.accept()
                except TimeoutError:
                    continue
                came.append(who)
                connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        yield listening.getsockname()[1], came
        ends.set()
        thread.join()


@pytest.mark.parametrize("scheme", ["http", "https", "HTTP", "ftp", "s3"])
@pytest.mark.parametrize("path", ["/models", "/workflows"])
def test_no_scheme_makes_it_fetch(client: Client, bait: tuple[int, list[object]], path: str, scheme: str) -> None:
    port, came = bait
    for url in (
        f"{scheme}://127.0.0.1:{port}/m.mar",
        f"{scheme}://localhost:{port}/m.mar",
        f"//127.0.0.1:{port}/m.mar",
    ):
        answer = client.manage("POST", path, {"url": url, "model_name": "x", "workflow_name": "x"})
        assert 400 <= answer.status < 500, answer.body
    assert not came


def test_grpc_does_not_fetch_either(grpc: Any, client: Client, bait: tuple[int, list[object]]) -> None:
    port, came = bait
    message = field(5, b"x") + field(9, f"http://127.0.0.1:{port}/m.mar".encode())
    refused = call(grpc, client, "management", "RegisterModel", client.token("management"), message)
    assert refused is not None
    assert refused != grpc.StatusCode.PERMISSION_DENIED
    assert not came
