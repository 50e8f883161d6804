"""What ts_open_inference_protocol=true adds: a gRPC service, and paths that TorchServe's front end answers itself.

No call is given up here: TorchServe's thread for the worker ends of that for good, if it happens while it answers.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from demo import SAMPLES
from server.client import Client
from server.config import config_on_free_ports
from server.http import Answer, request
from server.process import Server

pytestmark = pytest.mark.e2e

grpc = pytest.importorskip("grpc", reason="needs the test extra's grpcio")
protoc = pytest.importorskip("grpc_tools.protoc", reason="needs the test extra's grpcio-tools")

SEVEN = (SAMPLES / "seven.png").read_bytes()
PROTOS = Path(__file__).parent / "protos"


@pytest.fixture(scope="module")
def client(model_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The client of a server with the setting, which has to end with the worker that it began with."""
    folder = tmp_path_factory.mktemp("open_inference")
    config = config_on_free_ports(folder / "config.properties", {"ts_open_inference_protocol": "true"})
    running = Server(folder, config, model_store, ["digits=digits.mar"])
    running.start()
    try:
        running.wait({"digits": lambda client: client.predict("digits", SEVEN).status == 200}, 180, print)
        before = running.client.describe("digits")["workers"][0]["pid"]
        yield running.client
        assert running.client.predict("digits", SEVEN).status == 200
        assert running.client.describe("digits")["workers"][0]["pid"] == before
    finally:
        running.stop()


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModuleType, ModuleType]]:
    """What protoc makes of open_inference.proto."""
    folder = tmp_path_factory.mktemp("open_inference_protos")
    command = ["protoc", f"-I{PROTOS}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    assert protoc.main([*command, str(PROTOS / "open_inference.proto")]) == 0
    sys.path.insert(0, str(folder))
    try:
        yield (
            importlib.import_module("open_inference_pb2"),
            importlib.import_module("open_inference_pb2_grpc"),
        )
    finally:
        sys.path.remove(str(folder))


class Caller:
    def __init__(self, client: Client, messages: tuple[ModuleType, ModuleType]) -> None:
        self.pb, stubs = messages
        self.channel = grpc.insecure_channel(f"127.0.0.1:{client.config['grpc_inference_port']}")
        self.stub = stubs.GRPCInferenceServiceStub(self.channel)
        self.token = (("authorization", f"Bearer {client.token('inference')}"),)

    def request(self, datatype: str, shape: list[int], **contents: Any) -> Any:
        tensor = self.pb.Tensor(name="image", datatype=datatype, shape=shape, contents=self.pb.Contents(**contents))
        return self.pb.ModelInferRequest(model_name="digits", id="7", inputs=[tensor])

    def infer(self, asked: Any) -> dict[str, Any]:
        """Outputs by name."""
        answer = self.stub.ModelInfer(asked, metadata=self.token, timeout=30)
        return {output.name: output for output in answer.outputs}


@pytest.fixture
def caller(client: Client, messages: tuple[ModuleType, ModuleType]) -> Iterator[Caller]:
    caller = Caller(client, messages)
    yield caller
    caller.channel.close()


def test_files_and_pixels(caller: Caller) -> None:
    found = caller.infer(caller.request("BYTES", [2], bytes_contents=[SEVEN, SEVEN]))
    assert found.keys() == {"scores", "indices", "answers"}
    assert list(found["indices"].shape) == [2, 5]
    assert found["indices"].contents.int64_contents[0] == 7
    assert found["scores"].contents.fp32_contents[0] > 0.5
    assert json.loads(found["answers"].contents.bytes_contents[1])[0]["label"] == "7"
    for asked in (
        caller.request("UINT8", [32, 32, 3], uint_contents=[5] * 3072),
        caller.request("FP32", [3, 32, 32], fp32_contents=[0.5] * 3072),
    ):
        assert list(caller.infer(asked)["scores"].shape) == [1, 5]


def test_refusals_are_outputs(caller: Caller) -> None:
    raw = caller.request("BYTES", [1])
    raw.raw_input_contents.append(b"\5\0\0\0hello")
    for asked, word in (
        (raw, "raw_input_contents"),
        (caller.request("FP16", [3, 32, 32]), "raw_input_contents"),
        (caller.request("BYTES", [1], bytes_contents=[b"no image"]), "bytes"),
        (caller.request("INT64", [1], int64_contents=[1]), "datatype"),
        (caller.pb.ModelInferRequest(model_name="digits"), "inputs"),
    ):
        found = caller.infer(asked)
        assert found.keys() == {"error"}
        error = json.loads(found["error"].contents.bytes_contents[0])
        assert error["code"] in (400, 415)
        assert word in error["message"]


def test_what_torchserve_answers_itself(caller: Caller, client: Client) -> None:
    """Ready is said of the server always, and nothing of a model over HTTP."""
    pb = caller.pb
    assert caller.stub.ServerLive(pb.ServerLiveRequest(), metadata=caller.token, timeout=30).live
    assert caller.stub.ModelReady(pb.ModelReadyRequest(name="digits"), metadata=caller.token, timeout=30).ready
    for wrong, code in (
        (lambda: caller.stub.ServerLive(pb.ServerLiveRequest(), timeout=30), grpc.StatusCode.PERMISSION_DENIED),
        (lambda: caller.infer(pb.ModelInferRequest(model_name="other")), grpc.StatusCode.INTERNAL),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            wrong()
        assert caught.value.code() == code
    assert get(client, "/v2/health/live").json() == {"live": True}
    assert get(client, "/v2/health/ready").json() == {"ready": True}
    assert get(client, "/v2").json()["version"] == "0.12.0"
    assert get(client, "/v2/models/digits").status == get(client, "/v2/models/digits/ready").status == 404
    assert get(client, "/v2/models/digits/versions/1.0/infer").status == 501
    assert get(client, "/predictions/digits/1.0/v2/models/digits/versions/1.0/ready").json()["ready"] is True
    assert get(client, "/ping").json() == {"status": "Healthy"}


def get(client: Client, path: str) -> Answer:
    return request(
        "GET", f"{client.inference}{path}", headers={"Authorization": f"Bearer {client.token('inference')}"}
    )
