"""gRPC as generated clients speak it: answers, refusals, streams, cancelled calls; no worker may end of them."""

from __future__ import annotations

import importlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from demo import SAMPLES
from server.client import Client

pytestmark = pytest.mark.e2e

grpc = pytest.importorskip("grpc", reason="needs the test extra's grpcio")
protoc = pytest.importorskip("grpc_tools.protoc", reason="needs the test extra's grpcio-tools")

SEVEN = (SAMPLES / "seven.png").read_bytes()
PROTOS = Path(__file__).parent / "protos"
MODELS = ("digits", "sentences")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    """The modules that protoc makes of protos/, by name."""
    folder = tmp_path_factory.mktemp("protos")
    files = [str(path) for path in PROTOS.iterdir()]
    assert (
        protoc.main(["protoc", f"-I{PROTOS}", f"--python_out={folder}", f"--grpc_python_out={folder}", *files]) == 0
    )
    sys.path.insert(0, str(folder))
    try:
        names = [f"{path.stem}_pb2{suffix}" for path in PROTOS.iterdir() for suffix in ("", "_grpc")]
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(folder))


class Caller:
    """A gRPC client of one TorchServe."""

    def __init__(self, client: Client, generated: dict[str, ModuleType]) -> None:
        self.client, self.generated = client, generated
        address = client.config["grpc_inference_address"]
        self.channel = grpc.insecure_channel(f"{address}:{client.config['grpc_inference_port']}")
        self.stub = generated["inference_pb2_grpc"].InferenceAPIsServiceStub(self.channel)
        self.token = (("authorization", f"Bearer {client.token('inference')}"),)

    def message(self, model: str, **entries: bytes) -> Any:
        return self.generated["inference_pb2"].PredictionsRequest(model_name=model, input=entries)

    def predict(self, model: str, **entries: bytes) -> Any:
        answer = self.stub.Predictions(self.message(model, **entries), metadata=self.token, timeout=120)
        return json.loads(answer.prediction)

    def stream(self, model: str, **entries: bytes) -> Any:
        call = self.stub.StreamPredictions(self.message(model, **entries), metadata=self.token, timeout=120)
        (answer,) = [json.loads(part.prediction) for part in call]
        return answer


@pytest.fixture
def caller(client: Client, generated: dict[str, ModuleType]) -> Iterator[Caller]:
    """A client; behind it, the same workers have to serve as before it."""
    before = {name: client.describe(name)["workers"][0]["pid"] for name in MODELS}
    caller = Caller(client, generated)
    yield caller
    assert caller.predict("digits", data=SEVEN)[0]["label"] == "7"
    assert len(caller.predict("sentences", data=b"A sentence.")) == 384
    caller.channel.close()
    assert {name: client.describe(name)["workers"][0]["pid"] for name in MODELS} == before


WAYS: list[Callable[..., Any]] = [Caller.predict, Caller.stream]


@pytest.mark.parametrize("ask", WAYS)
def test_answers_are_those_of_rest(caller: Caller, client: Client, ask: Callable[..., Any]) -> None:
    image = ask(caller, "digits", data=SEVEN)
    assert [item["label"] for item in image] == [item["label"] for item in client.predict("digits", SEVEN).json()]
    wanted = client.predict("sentences", b"A sentence.", "text/plain").json()
    for sent in (b"A sentence.", b'"A sentence."'):
        np.testing.assert_allclose(ask(caller, "sentences", data=sent), wanted, atol=1e-5)
    for sent in (b'["A sentence.", "Another."]', b'{"instances": ["A sentence.", "Another."]}'):
        answer = ask(caller, "sentences", data=sent)
        first = (answer["predictions"] if isinstance(answer, dict) else answer)[0]
        np.testing.assert_allclose(first, wanted, atol=1e-5)
    two = ask(caller, "sentences", text1=b"A sentence.", text2=b"Another.")
    assert sorted(np.allclose(vector, wanted, atol=1e-5) for vector in two) == [False, True]


@pytest.mark.parametrize("ask", WAYS)
def test_options_are_entries_too(caller: Caller, ask: Callable[..., Any]) -> None:
    assert len(ask(caller, "digits", data=SEVEN, top_k=b"2")) == 2
    assert len(ask(caller, "sentences", data=b"word " * 300, truncate=b"true")) == 384


@pytest.mark.parametrize("ask", WAYS)
@pytest.mark.parametrize(
    ("model", "entries", "error"),
    [
        ("digits", {}, "EmptyRequest"),
        ("digits", {"data": b""}, "EmptyRequest"),
        ("digits", {"data": b"no image, and longer than an option is " * 9}, "UnsupportedMediaType"),
        ("digits", {"data": SEVEN, "topk": b"2"}, "InvalidOption"),
        ("sentences", {"data": b"A sentence.", "truncat": b"true"}, "InvalidOption"),
        ("sentences", {"data": b"word " * 300}, "InputTooLong"),
        ("sentences", {"data": b'{"inputs": []}'}, "InvalidInput"),
        ("sentences", {"text": b"a", "text_pair": b"b"}, "InvalidInput"),
        # Names of headers, which no entry is.
        ("sentences", {"describe": b"True"}, "InvalidOption"),
        ("sentences", {"content-length": b"3", "data": b"\xff"}, "InvalidOption"),
    ],
)
def test_refusals_come_as_bodies(
    caller: Caller, ask: Callable[..., Any], model: str, entries: dict[str, bytes], error: str
) -> None:
    assert ask(caller, model, **entries)["type"] == error


def test_a_token_is_wanted(caller: Caller, client: Client) -> None:
    wrong = (("authorization", f"Bearer {client.token('management')}"),)
    for metadata in ((), wrong):
        with pytest.raises(grpc.RpcError) as caught:
            caller.stub.Predictions(caller.message("digits", data=SEVEN), metadata=metadata, timeout=30)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_a_model_that_is_not_there_and_a_deadline_have_their_codes(caller: Caller) -> None:
    for model, timeout_s, codes in (
        ("nobody", 30, (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL)),
        ("sentences", 0.0001, (grpc.StatusCode.DEADLINE_EXCEEDED,)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            caller.stub.Predictions(caller.message(model, data=b"a"), metadata=caller.token, timeout=timeout_s)
        assert caught.value.code() in codes


def test_rest_and_grpc_and_streams_share_batches(caller: Caller, client: Client) -> None:
    """In any order, bad ones among them: each gets its own answer, and soon."""
    client.token("inference")
    text, wanted = b"A sentence.", client.predict("sentences", b"A sentence.", "text/plain").json()
    ways: list[Callable[[], Any]] = [
        lambda: client.predict("sentences", text, "text/plain", timeout_s=60).json(),
        lambda: caller.predict("sentences", data=text),
        lambda: caller.stream("sentences", data=text),
        lambda: client.predict("sentences", b"\xff", "text/plain", timeout_s=60).json(),
        lambda: caller.stream("sentences", data=b"\xff"),
    ]
    places = [place % len(ways) for place in range(60)]
    random.Random(0).shuffle(places)
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda place: ways[place](), places))
    for place, answer in zip(places, answers, strict=True):
        if place < 3:
            np.testing.assert_allclose(answer, wanted, atol=1e-5)
        else:
            assert answer["type"] == "InvalidInput"


@pytest.mark.parametrize("name", ["Predictions", "StreamPredictions"])
def test_calls_that_are_given_up_leave_the_others_alone(caller: Caller, name: str) -> None:
    """Cancelled at any moment, or past their deadline."""
    message = caller.message("sentences", data=b"word " * 200)
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(caller.predict, "sentences", data=b"A sentence.") for _ in range(20)]
        for moment in range(20):
            method = caller.stub.StreamPredictions if name == "StreamPredictions" else caller.stub.Predictions.future
            call = method(message, metadata=caller.token, timeout=30 if moment % 2 else 0.005 * moment + 0.001)
            time.sleep(0.003 * moment)
            call.cancel()
        assert [len(other.result()) for other in others] == [384] * 20


def test_a_client_that_hangs_up_leaves_the_others_alone(caller: Caller, client: Client) -> None:
    for _ in range(10):
        gone = Caller(client, caller.generated)
        gone.stub.StreamPredictions(gone.message("sentences", data=b"word " * 200), metadata=gone.token)
        gone.channel.close()
    assert len(caller.predict("sentences", data=b"A sentence.")) == 384


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stays", [0.0, 0.5])
def test_streams_for_models_with_a_state_fail_alone(caller: Caller, model: str, stays: float) -> None:
    """TorchServe fails StreamPredictions2 by itself, hands the row on nevertheless, and dies of an answer to it."""

    def messages() -> Iterator[Any]:
        message = caller.message(model, data=SEVEN if model == "digits" else b"A sentence.")
        message.sequence_id = "sequence"
        yield message
        time.sleep(stays)

    for _ in range(5):
        with pytest.raises(grpc.RpcError):
            list(caller.stub.StreamPredictions2(messages(), metadata=caller.token, timeout=30))


def test_the_management_port_describes(caller: Caller, client: Client) -> None:
    address = f"{client.config['grpc_management_address']}:{client.config['grpc_management_port']}"
    with grpc.insecure_channel(address) as channel:
        stub = caller.generated["management_pb2_grpc"].ManagementAPIsServiceStub(channel)
        asked = caller.generated["management_pb2"].DescribeModelRequest(model_name="digits", customized=True)
        token = (("authorization", f"Bearer {client.token('management')}"),)
        (described,) = json.loads(stub.DescribeModel(asked, metadata=token, timeout=60).msg)
    assert described["customizedMetadata"]["kind"] == "image-classifier"
