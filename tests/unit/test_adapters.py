"""Protocols are found by themselves, mix in one batch, and combine the answers to several inputs into one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from handlers.protocol import adapters, writer
from handlers.protocol.adapter import Adapter, Answer, json_answer
from handlers.protocol.errors import InvalidInput, NotFinite, RequestError
from handlers.protocol.interface import Interface
from handlers.protocol.request import Request
from handlers.protocol.row import Row
from handlers.serving.handler import Handler
from handlers.serving.inputs import Inputs, Options

if TYPE_CHECKING:
    from tests.unit.conftest import FakeContext

REST = {"content-length": "9", "explain": "False", "url_path": ""}
JSON = {**REST, "content-type": "application/json"}
MODEL = Interface("a text", lambda media_type: media_type in ("", "text/plain"), 4, description={"kind": "fake"})


class Rerank(Adapter):
    """As a protocol that is added: a query and documents in, their order out."""

    def claims(self, row: Row) -> bool:
        return row.url_path == "rerank"

    def read(self, row: Row, model: Interface) -> Request:
        body = row.parameters["body"]
        if not isinstance(body, dict) or "query" not in body:
            raise InvalidInput("no query")
        return Request(self, [f"{body['query']}{document}" for document in body["documents"]], combine=_ranked)

    def write_error(self, error: RequestError) -> Answer:
        return json_answer({"error": {"message": error.message}}, error.status)


def _ranked(answers: Sequence[Any]) -> object:
    order = sorted(range(len(answers)), key=lambda index: -len(answers[index]))
    return {"results": [{"index": index, "score": len(answers[index])} for index in order]}


class Echo(Handler[Any, str]):
    """Answers a text by itself; keeps what ran together."""

    def __init__(self) -> None:
        from types import SimpleNamespace

        from handlers.protocol.reader import Reader

        self.reader = Reader(MODEL)
        self.metrics = SimpleNamespace(report=lambda *arguments: None)  # type: ignore[assignment]
        self.ran: list[list[str]] = []

    def prepare(self, inputs: Inputs[object]) -> Inputs[str]:
        return inputs.each(lambda value, _: str(value))

    def predict(self, inputs: Sequence[tuple[str, Options]]) -> list[object]:
        self.ran.append([text for text, _ in inputs])
        return [NotFinite() if "broken" in text else text for text, _ in inputs]


@pytest.fixture
def with_rerank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "ADAPTERS", (Rerank(), *adapters.ADAPTERS))


def test_each_file_is_a_protocol_and_torchserves_own_comes_last() -> None:
    names = [type(adapter).__name__ for adapter in adapters.ADAPTERS]
    assert {"KServeV1", "KServeV2", "Management", "OpenAI", "OpenInferenceGrpc"} < set(names)
    assert names[-1] == "TorchServe"
    assert adapters.DEFAULT is adapters.ADAPTERS[-1]
    assert [adapter.priority for adapter in adapters.ADAPTERS].count(0) == 1


@pytest.mark.parametrize(
    ("parameters", "headers", "name"),
    [
        ({"body": b"a"}, REST, "TorchServe"),
        ({"body": b"a"}, {**REST, "url_path": "anything"}, "TorchServe"),  # which refuses it
        ({"data": b"a"}, {}, "TorchServe"),
        ({}, {}, "TorchServe"),
        ({"body": b"a"}, {"content-length": "1", "explain": "False"}, "KServeV1"),
        ({}, {"content-length": "0", "describe": "True"}, "Management"),
    ],
)
def test_a_row_is_claimed_by_its_protocol_alone(
    parameters: dict[str, Any], headers: dict[str, str], name: str
) -> None:
    row = Row.of(parameters, headers)
    claiming = [type(adapter).__name__ for adapter in adapters.ADAPTERS if adapter.claims(row)]
    assert claiming[0] == type(adapters.adapter_of(row)).__name__ == name
    assert len(claiming) <= 2


@pytest.mark.usefixtures("with_rerank")
def test_protocols_mix_in_one_batch(context_for: Callable[..., FakeContext]) -> None:
    rerank, kserve = {**JSON, "url_path": "rerank"}, {"content-length": "9", "explain": "False"}
    rows: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"body": {"query": "q", "documents": ["a", "ccc", "bb"]}}, rerank),
        ({"body": b"plain"}, REST),
        ({"body": {"documents": []}}, rerank),
        ({"body": {"instances": ["x", "y"]}}, {**kserve, "content-type": "application/json"}),
        ({}, {"content-length": "0", "describe": "True"}),
        ({"body": {"query": "broken", "documents": ["a", "b"]}}, rerank),
        ({"body": {"query": "q", "documents": list("abcde")}}, rerank),
        ({"body": b""}, REST),
    ]
    handler, context = Echo(), context_for([headers for _, headers in rows])
    answers = [json.loads(body) for body in handler.handle([row for row, _ in rows], context)]
    assert answers[:2] == [
        {"results": [{"index": 1, "score": 4}, {"index": 2, "score": 3}, {"index": 0, "score": 2}]},
        "plain",
    ]
    assert answers[2] == {"error": {"message": "no query"}}
    assert answers[3:5] == [{"predictions": ["x", "y"]}, {"kind": "fake", "worker": {"pid": os.getpid()}}]
    assert answers[5]["error"]["message"].startswith("input 1 of 2: the model's output is not finite")
    assert "5 inputs; at most 4" in answers[6]["error"]["message"]
    assert answers[7]["type"] == "EmptyRequest"
    assert list(context.statuses.values()) == [200, 200, 400, 200, 200, 500, 413, 400]
    assert handler.ran == [["qa", "qccc", "qbb", "plain", "x", "y", "brokena", "brokenb"]]


@pytest.mark.usefixtures("with_rerank")
@pytest.mark.parametrize("header", ["content-encoding", "transfer-encoding"])
def test_a_coded_body_is_refused_in_every_protocol(context_for: Callable[..., FakeContext], header: str) -> None:
    headers = {**JSON, "url_path": "rerank", header: "gzip"}
    context = context_for([headers])
    (body,) = Echo().handle([{"body": {"query": "q", "documents": ["a"]}}], context)
    assert context.statuses == {0: 415}
    assert header in json.loads(body)["error"]["message"]


class Faulty(Rerank):
    """Fails where it is told to."""

    def __init__(self, step: str) -> None:
        self.step = step

    def claims(self, row: Row) -> bool:
        return super().claims(row)

    def read(self, row: Row, model: Interface) -> Request:
        if self.step == "read":
            raise KeyError("a bug")
        return super().read(row, model)

    def write(self, request: Request) -> Answer:
        raise KeyError("a bug")

    def write_error(self, error: RequestError) -> Answer:
        if self.step == "write_error":
            raise KeyError("a bug")
        return super().write_error(error)


@pytest.mark.parametrize("step", ["read", "write", "write_error"])
def test_an_adapter_that_fails_fails_its_own_rows(
    context_for: Callable[..., FakeContext], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(adapters, "ADAPTERS", (Faulty(step), *adapters.ADAPTERS))
    context = context_for([{**JSON, "url_path": "rerank"}, REST])
    rows: list[dict[str, Any]] = [{"body": {"query": "q", "documents": ["a"]}}, {"body": b"plain"}]
    bodies = Echo().handle(rows, context)
    assert (context.statuses, bodies[1]) == ({0: 500, 1: 200}, b'"plain"')
    assert b"KeyError" in bodies[0]


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({"url_path": "v1/embeddings"}, "v1/embeddings"),
        ({"url_path": "/rerank/"}, "rerank"),
        ({"url_path": ""}, ""),
        ({}, ""),
        ({"url_path": "", "URL_PATH": "x"}, "x"),
    ],
)
def test_the_rest_of_the_path_is_known(headers: dict[str, str], path: str) -> None:
    assert Row.of({}, headers).url_path == path


def test_an_answer_that_cannot_be_written_fails_its_request(context_for: Callable[..., FakeContext]) -> None:
    def refuse(answers: Sequence[Any]) -> object:
        raise InvalidInput("these do not go together")

    context = context_for()
    requests = [Request(adapters.DEFAULT, ["a"], combine=refuse, answers=["a"]), Request(adapters.DEFAULT, ["b"])]
    requests[1].answers = ["b"]
    bodies = writer.write(requests, context)
    assert (context.statuses, bodies[1]) == ({0: 400, 1: 200}, b'"b"')
    assert json.loads(bodies[0])["message"] == "these do not go together"
