"""Ids go from a request's headers to its answer, its error and the log; an id that could do harm goes nowhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from handlers.protocol import request_ids, writer
from handlers.protocol.errors import InferenceFailed, InvalidInput
from handlers.protocol.interface import Interface
from handlers.protocol.reader import Reader
from handlers.protocol.request_ids import RequestIds

if TYPE_CHECKING:
    from tests.unit.conftest import FakeContext

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
READER = Reader(Interface("a text", lambda media_type: True, 9))


class Headers(dict[int, dict[str, str]]):
    """Keeps the answers' headers of a context."""

    def on(self, context: FakeContext) -> Headers:
        context.set_response_header = lambda idx, key, value: self.setdefault(idx, {}).update({key: value})  # type: ignore[method-assign]
        return self


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("order-66_a.b:c/d+e=", True),
        ("7b1f0c52-88d2-4b5e-9f7c-2f3c3c8b6a11", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        ("-begins", False),
        ("two words", False),
        ("line\nend", False),
        ("line\n", False),
        ("line\r\nSet-Cookie: a=b", False),
        ("line\u2028end", False),
        ("line\x85end", False),
        ('a"quote', False),
        ("[METRICS]RequestsFailed.Count:9|#ModelName:m|#hostname:h,1", False),
        ("\u00e4", False),
        ("\u0661", False),
        ("a, b", False),
    ],
)
def test_a_clients_id_is_kept_only_if_it_is_harmless(sent: str, kept: bool) -> None:
    assert request_ids.read({"x-request-id": sent}, {}, 0).client == (sent if kept else "")


def test_of_two_headers_the_clients_own_is_read() -> None:
    headers = {"x-request-id": "of-a-proxy", "x-client-request-id": "mine"}
    assert request_ids.read(headers, {3: "uuid"}, 3) == RequestIds("uuid", "mine")
    assert request_ids.read({}, None, 0) == RequestIds()


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (TRACE, TRACE),
        ("cc" + TRACE[2:], "cc" + TRACE[2:]),
        ("cc" + TRACE[2:] + "-what-comes-later", "cc" + TRACE[2:]),
        (TRACE + "-more", ""),
        ("ff" + TRACE[2:], ""),
        (TRACE.upper(), ""),
        (TRACE[:-1], ""),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
        (f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01", ""),
        (f"{TRACE}\n", ""),
        (f"{TRACE}, {TRACE}", ""),
        ("cc" + TRACE[2:] + "-" + "x" * 100, ""),
    ],
)
def test_a_traceparent_is_kept_if_w3c_calls_it_valid(sent: str, wanted: str) -> None:
    assert request_ids.read({"traceparent": sent}, {}, 0).traceparent == wanted


def test_what_the_log_says_has_every_id() -> None:
    assert str(RequestIds("uuid", "mine", TRACE)) == f"uuid, client's id mine, trace {TRACE[3:35]}"
    assert str(RequestIds("uuid")) == "uuid"
    assert str(RequestIds()) == "without an id"


REST: Mapping[str, str] = {"content-length": "9", "explain": "False", "X-Request-Id": "mine", "traceparent": TRACE}
BY_PATH = {"": {"url_path": ""}, "v1/embeddings": {"url_path": "v1/embeddings"}, "embed": {"url_path": "embed"}}
PATHS: list[dict[str, str]] = [{**REST, **more} for more in (*BY_PATH.values(), {"url_path": "rerank"}, {})]


@pytest.mark.parametrize("headers", PATHS, ids=lambda headers: headers.get("url_path", "kserve"))
def test_errors_of_every_protocol_name_the_request(
    context_for: Callable[..., FakeContext], headers: dict[str, str]
) -> None:
    context = context_for([headers])
    context.request_ids = {0: "uuid"}
    answered = Headers().on(context)
    requests = READER.read([{"body": b'{"inputs": 1'}], context)
    requests[0].error = requests[0].error or InvalidInput("why")
    (body,) = writer.write(requests, context)
    answer = json.loads(body)
    assert (answer["request_id"], answer["client_request_id"]) == ("uuid", "mine")
    assert answered[0] == {"X-Client-Request-Id": "mine", "traceparent": TRACE}


def test_an_error_that_hits_several_requests_names_each(context_for: Callable[..., FakeContext]) -> None:
    context = context_for([{**REST, "url_path": "", "X-Request-Id": name} for name in ("one", "two")])
    context.request_ids = {0: "uuid0", 1: "uuid1"}
    Headers().on(context)
    requests = READER.read([{"body": b"a"}, {"body": b"b"}], context)
    writer.fail(requests, InferenceFailed("ours"))
    answers: list[Any] = [json.loads(body) for body in writer.write(requests, context)]
    assert [answer["request_id"] for answer in answers] == ["uuid0", "uuid1"]
    assert [answer["client_request_id"] for answer in answers] == ["one", "two"]


def test_good_answers_carry_the_ids_in_headers_alone(context_for: Callable[..., FakeContext]) -> None:
    context = context_for([{**REST, "url_path": ""}, {"content-length": "1", "url_path": ""}])
    context.request_ids = {0: "uuid0", 1: "uuid1"}
    answered = Headers().on(context)
    requests = READER.read([{"body": b"a"}, {"body": b"b"}], context)
    for request in requests:
        request.answers = ["fine"]
    assert writer.write(requests, context) == [b'"fine"', b'"fine"']
    assert answered == {0: {"X-Client-Request-Id": "mine", "traceparent": TRACE}}
