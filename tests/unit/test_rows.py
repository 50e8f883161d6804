"""By which of TorchServe's doors a row came, and which headers and paths are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.protocol import adapters
from handlers.protocol.errors import RequestError
from handlers.protocol.row import Row

REST: dict[str, Any] = {"Authorization": "Bearer x", "Content-Length": "3", "body": {"content-type": ""}}
PREDICTIONS = {**REST, "explain": "False", "url_path": ""}
KSERVE = {**REST, "explain": "False"}
# As a TorchServe 0.12 was seen to hand them over.
GRPC: dict[str, Any] = {"data": {"content-type": ""}}
STREAM2 = {**GRPC, "ts_request_sequence_id": "s", "ts_request_sequence_end": "true"}
OPEN_INFERENCE = {"body": {"content-type": "application/json"}}
FORGED = {"content-length": {"content-type": ""}, "describe": {"content-type": ""}}  # names of gRPC's entries


def refuse(sent: dict[str, Any]) -> None:
    row = Row.of({"body": b""}, sent)
    row.refuse_other_paths()
    row.refuse_codings()


@pytest.mark.parametrize(
    ("sent", "grpc", "unanswerable"),
    [
        (PREDICTIONS, False, False),
        (KSERVE, False, False),
        (REST, False, False),
        ({"content-length": "0"}, False, False),
        ({**REST, "ts_request_sequence_id": "s"}, False, False),  # a REST client's own header
        (GRPC, True, False),
        ({}, True, False),
        (FORGED, True, False),
        (STREAM2, True, True),
        (OPEN_INFERENCE, True, False),
        ({"describe": "True"}, True, False),
    ],
)
def test_grpc_is_told_from_rest(sent: dict[str, Any], grpc: bool, unanswerable: bool) -> None:
    row = Row.of({}, sent)
    assert (row.is_grpc, row.is_unanswerable) == (grpc, unanswerable)


@pytest.mark.parametrize(
    ("parameters", "sent", "wants"),
    [
        ({}, {"describe": "True", "Content-Length": "0", "Host": "h"}, True),  # management, by REST
        ({}, {"describe": "True"}, True),  # and by gRPC
        ({"body": b""}, {**PREDICTIONS, "describe": "True"}, False),
        ({"body": b""}, {**REST, "describe": "True"}, False),  # /invocations adds nothing
        ({}, {**REST, "describe": "True", "content-type": "multipart/form-data; boundary=x"}, False),
        # Two content types: the front end goes by the first and hands the last on.
        ({}, {"describe": "True", "Content-Length": "0", "Content-Type": "text/plain"}, False),
        ({"describe": b"True"}, FORGED, False),
        ({}, {"describe": "False"}, False),
        ({}, GRPC, False),
    ],
)
def test_only_the_management_port_is_described_to(
    parameters: dict[str, Any], sent: dict[str, Any], wants: bool
) -> None:
    assert Row.of(parameters, sent).wants_description is wants


@pytest.mark.parametrize(
    ("headers", "status", "said"),
    [
        ({"url_path": "embeddings"}, 404, "NAME/VERSION"),
        ({"url_path": "/x"}, 404, "NAME/VERSION"),
        ({"URL_PATH": "x", "url_path": ""}, 404, "NAME/VERSION"),
        ({"explain": "True"}, 404, "explanations"),
        ({"Explain": "True", "explain": "False"}, 404, "explanations"),
        ({"Inference-Header-Content-Length": "95"}, 400, "Inference-Header-Content-Length"),
        ({"inference-header-content-length": ""}, 400, "v2"),
        ({"describe": "True"}, 400, "customized=true"),
        ({"Describe": "True"}, 400, "customized=true"),
        ({"Content-Range": "bytes 0-9/20"}, 400, "part"),
        ({"Content-Encoding": "gzip"}, 415, "content-encoding"),
        ({"content-encoding": "Identity, br"}, 415, "content-encoding"),
        ({"transfer-encoding": "gzip, chunked"}, 415, "transfer-encoding"),
        ({"Content-Transfer-Encoding": "base64"}, 415, "content-transfer-encoding"),
    ],
)
def test_what_claims_a_meaning_is_refused_by_name(headers: dict[str, str], status: int, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        refuse({**PREDICTIONS, **headers})
    assert caught.value.status == status
    assert said in caught.value.message


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Encoding": "identity"},
        {"Content-Encoding": ""},
        {"transfer-encoding": "chunked"},
        {"Content-Transfer-Encoding": "BINARY"},
        {"describe": "False"},
        {"Accept-Encoding": "gzip", "X-Forwarded-For": "::1", "X-Request-Id": "x", "traceparent": "00-0-0-00"},
    ],
)
def test_what_changes_nothing_passes(headers: dict[str, str]) -> None:
    refuse({**PREDICTIONS, **headers})


def test_kserve_paths_are_known_by_what_the_others_have() -> None:
    assert Row.of({}, KSERVE).is_kserve
    assert not Row.of({}, PREDICTIONS).is_kserve
    assert not Row.of({}, REST).is_kserve
    assert not Row.of({}, GRPC).is_kserve


def test_a_header_in_two_spellings_has_both_values() -> None:
    headers = Row.of({}, {"x-top-k": "2", "X-Top-K": "3", "Accept": "a", "accept": "a"}).headers
    assert headers == {"x-top-k": "2, 3", "accept": "a"}


BODIES: list[Any] = [
    b"a text", bytearray(b'{"inputs": "a"}'), b'{"inputs": [{"datatype": "BYTES"}]}', b'{"instances": ["a"]}',
    b'{"texts": ["a"], "query": "b"}', {"inputs": "a"}, {"input": "a"}, {}, ["a"], "a", None,
]  # fmt: skip
MORE: list[dict[str, Any]] = [
    {}, {"describe": "True"}, {"Describe": "False"}, {"Content-Type": "application/json"},
    {"Content-Type": "multipart/form-data; boundary=b"}, {"Url_Path": "embed"}, {"url_path": "rerank"},
    {"url_path": "v2"}, {"url_path": " "}, {"Inference-Header-Content-Length": "3"}, {"body": {"content-type": "a"}},
]  # fmt: skip


@pytest.mark.parametrize("more", MORE, ids=str)
@pytest.mark.parametrize("sent", [PREDICTIONS, KSERVE, REST, GRPC, {}], ids=["own", "kserve", "rest", "grpc", "none"])
def test_adapters_that_are_not_asked_would_not_have_claimed_the_row(
    sent: dict[str, Any], more: dict[str, Any]
) -> None:
    for body in BODIES:
        for parameters in ({"body": body}, {"data": body}, {}):
            row = Row.of(parameters, {**sent, **more})
            claiming = next(adapter for adapter in adapters.ADAPTERS if adapter.claims(row))
            assert adapters.adapter_of(row) is claiming
