"""client/: what it sends, how it reads answers and refusals, and what it sends again."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import stamina
from PIL import Image
from torchserve_fast_client import AsyncClient, Client, Entity, Label, Rank, RequestFailed

URL = "http://server:8080"
TOKEN = "abc"  # noqa: S105 - of nobody
VECTORS = np.arange(6, dtype=np.float32).reshape(2, 3)
REFUSAL = {"code": 400, "type": "InputTooLong", "message": "the text has 502 tokens", "request_id": "7"}
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def _no_pauses() -> Iterator[None]:
    with stamina.set_testing(True, attempts=4, cap=True):
        yield


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


class Server:
    """Gives the answers in turn, the last one for ever, and keeps the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.requests = list(answers), list[httpx.Request]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **options: Any) -> Client:
        return Client(URL, transport=httpx.MockTransport(self), **options)

    @property
    def sent(self) -> httpx.Request:
        (request,) = self.requests
        return request


def ok(content: object) -> httpx.Response:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return httpx.Response(200, content=body)


def test_texts_go_as_json_and_embeddings_come_as_an_array() -> None:
    server = Server(ok(npy(VECTORS)))
    found = server.client(token=TOKEN).embed("sentences/1.0", ["a", "b"], normalize=False, truncate=None)
    assert np.array_equal(found, VECTORS)
    assert server.sent.url == f"{URL}/predictions/sentences/1.0"
    assert json.loads(server.sent.content) == {"instances": ["a", "b"], "parameters": {"normalize": False}}
    assert server.sent.headers["accept"] == "application/x-npy"
    assert server.sent.headers["authorization"] == f"Bearer {TOKEN}"


def test_pairs() -> None:
    server = Server(ok({"predictions": [[{"label": "yes", "score": 0.9}]]}))
    assert server.client().classify("nli", [("a", "b")], top_k=1) == [[Label("yes", 0.9)]]
    instances = json.loads(server.sent.content)["instances"]
    assert instances == [{"text": "a", "text_pair": "b"}]
    assert "authorization" not in server.sent.headers


def test_an_image_goes_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG")
    for image in (b"\x89PNG", path):
        server = Server(ok([{"label": "7", "index": 7, "probability": 0.5}]))
        assert server.client().classify("digits", [image], top_k=1) == [[Label("7", 0.5, 7)]]
        assert (server.sent.content, server.sent.headers["x-top-k"]) == (b"\x89PNG", "1")


def test_several_images_are_parts_in_order() -> None:
    server = Server(ok(npy(VECTORS)))
    server.client().embed("dino", [b"first", np.zeros((4, 4, 3), np.uint8)], normalize=True)
    body = server.sent.content
    assert body.index(b'name="0000"') < body.index(b"first") < body.index(b'name="0001"') < body.index(b"\x93NUMPY")
    assert server.sent.headers["x-normalize"] == "true"


def test_an_array_of_images_is_one_file() -> None:
    server = Server(ok([[{"label": "7", "index": 7, "probability": 0.5}]] * 2))
    pixels = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    assert len(server.client().classify("digits", pixels)) == 2
    assert np.array_equal(np.load(io.BytesIO(server.sent.content)), pixels)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P", "F"])
def test_an_image_of_pillow_is_turned_as_its_file_says(mode: str) -> None:
    image = Image.new("RGB", (3, 2), (255, 0, 0)).convert(mode)
    image.getexif()[0x0112] = 6  # on its side
    server = Server(ok(npy(VECTORS[:1])))
    server.client().embed("dino", [image])
    with Image.open(io.BytesIO(server.sent.content)) as sent:
        assert (sent.format, sent.size) == ("PNG", (2, 3))


def test_entities_ranks_and_json() -> None:
    entity = {"label": "PER", "score": 0.9, "text": "Ada", "start": 0, "end": 3}
    assert Server(ok({"predictions": [[entity], []]})).client().entities("ner", ["Ada", "a"]) == [
        [Entity("PER", 0.9, "Ada", 0, 3)],
        [],
    ]
    scores = ok({"predictions": [[{"label": "LABEL_0", "score": score}] for score in (0.1, 0.9, 0.5)]})
    assert Server(scores).client().rerank("r", "q", ["a", "b", "c"], top_n=2) == [Rank(1, 0.9), Rank(2, 0.5)]
    assert Server(ok({"predictions": ["x"]})).client().predict("any", ["a"], candidate_labels=["b"]) == ["x"]


@pytest.mark.parametrize(
    "inputs", ["a text", b"a file", Path("a.png"), [], None, [b"a", "b"], [7], np.zeros((4, 4, 3)), ["a", None]]
)
def test_what_is_no_list_of_inputs_is_not_sent(inputs: Any) -> None:
    server = Server(ok({}))
    with pytest.raises(TypeError, match="wanted: a list"):
        server.client().predict("any", inputs)
    assert not server.requests


def test_a_refusal_is_not_sent_again() -> None:
    server = Server(httpx.Response(400, json=REFUSAL))
    with pytest.raises(RequestFailed, match="400 InputTooLong: the text has 502 tokens") as caught:
        server.client().embed("sentences", ["a"])
    error = caught.value
    assert (error.status, error.type, error.request_id) == (400, "InputTooLong", "7")
    assert len(server.requests) == 1


def test_an_error_of_another_server_is_told_by_its_status() -> None:
    for answer in (httpx.Response(413), httpx.Response(502, text="<html>"), httpx.Response(404, json=[1])):
        with pytest.raises(RequestFailed, match="gave no reason") as caught:
            Server(answer).client().embed("sentences", ["a"])
        assert caught.value.status == answer.status_code


@pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), httpx.ConnectTimeout(""), httpx.Response(503)])
def test_what_has_not_run_is_sent_again(failure: Any) -> None:
    server = Server(failure, failure, ok(npy(VECTORS)))
    assert np.array_equal(server.client().embed("sentences", ["a", "b"]), VECTORS)
    assert len(server.requests) == 3
    server = Server(failure)
    with pytest.raises(RequestFailed) as caught:
        server.client(attempts=2).embed("sentences", ["a", "b"])
    assert (len(server.requests), caught.value.is_safe_to_retry) == (2, True)


@pytest.mark.parametrize("failure", [httpx.ReadTimeout(""), httpx.ReadError(""), httpx.Response(500)])
def test_what_may_have_run_is_not(failure: Any) -> None:
    server = Server(failure)
    with pytest.raises(RequestFailed):
        server.client().embed("sentences", ["a"])
    assert len(server.requests) == 1


def test_no_answer_has_no_status() -> None:
    with pytest.raises(RequestFailed, match="no answer ReadTimeout: no answer came in time") as caught:
        Server(httpx.ReadTimeout("")).client().embed("sentences", ["a"])
    assert caught.value.status is None


def test_each_try_asks_for_the_token() -> None:
    tokens = iter(["old", "new"])
    server = Server(httpx.Response(503), ok(npy(VECTORS)))
    server.client(token=lambda: next(tokens)).embed("sentences", ["a", "b"])
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer old", "Bearer new"]


@pytest.mark.parametrize(
    "answer", [ok(b"no array"), ok(b""), ok(npy(VECTORS[:1])), ok(np.array([{}, {}], dtype=object).dumps())]
)
def test_an_answer_of_another_form_is_an_error(answer: httpx.Response) -> None:
    with pytest.raises(RequestFailed, match="200 UnexpectedAnswer"):
        Server(answer).client().embed("sentences", ["a", "b"])


@pytest.mark.parametrize("content", [{}, [], {"predictions": [[0.5]]}, {"predictions": [[], []]}, {"predictions": 1}])
def test_labels_that_are_none(content: Any) -> None:
    with pytest.raises(RequestFailed, match="200 UnexpectedAnswer"):
        Server(ok(content)).client().classify("sentences", ["a"])


def test_asyncio() -> None:
    server = Server(httpx.Response(503), ok(npy(VECTORS)))

    async def ask() -> Any:
        async with AsyncClient(URL, lambda: "secret", transport=httpx.MockTransport(server)) as client:
            found = await client.embed("sentences", ["a", "b"])
            server.answers = [ok({"predictions": [[{"label": "a", "score": 0.5}]]})]
            assert await client.classify("s", ["a"]) == [[Label("a", 0.5)]]
            assert await client.rerank("s", "q", ["a"]) == [Rank(0, 0.5)]
            assert await client.predict("s", ["a"]) == [[{"label": "a", "score": 0.5}]]
            server.answers = [ok({"predictions": [[]]})]
            assert await client.entities("s", ["a"]) == [[]]
            server.answers = [httpx.Response(400, json=REFUSAL)]
            with pytest.raises(RequestFailed, match="InputTooLong"):
                await client.predict("s", ["a"])
        return found

    assert np.array_equal(asyncio.run(ask()), VECTORS)
    assert server.requests[1].headers["authorization"] == "Bearer secret"


def test_both_clients_offer_the_same() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)
