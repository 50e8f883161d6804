"""Paths, headers, charsets and envelopes through a real TorchServe: each is read, or refused by name."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
from urllib.parse import urlparse

import numpy as np
import pytest
from demo import SAMPLES
from server.client import Client
from server.http import Answer, request

pytestmark = pytest.mark.e2e

SEVEN = (SAMPLES / "seven.png").read_bytes()
TEXT = "größe €"
V2 = b'{"inputs":[{"name":"t","shape":[1,1],"datatype":"BYTES"}]}'
BOUNDARY = "a-boundary-that-nothing-holds"


def post(client: Client, path: str, body: bytes, **headers: str) -> Answer:
    """Exactly these headers besides the token, Host and Content-Length."""
    parsed = urlparse(client.inference)
    connection = http.client.HTTPConnection(str(parsed.hostname), parsed.port, timeout=60)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request("POST", path, body, {"Authorization": f"Bearer {client.token('inference')}", **sent})
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
    finally:
        connection.close()


def refused(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["type"]


def form(*parts: tuple[str, str, bytes]) -> tuple[bytes, str]:
    """name, the rest of the part's head, content."""
    body = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{head}\r\n\r\n'.encode() + data + b"\r\n"
        for name, head, data in parts
    )
    return body + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"


def test_what_is_no_request_of_kserve_v2_is_refused_by_name(client: Client) -> None:
    path = "/v2/models/sentences/infer"
    binary = {"Content_Type": "application/octet-stream", "Inference_Header_Content_Length": str(len(V2))}
    for answer in (
        post(client, path, V2 + b"\5\0\0\0hello", **binary),
        post(client, path, V2, Content_Type="application/json"),
        post(client, path, V2),
    ):
        assert answer.status == 400
        assert answer.json().keys() == {"error", "request_id"}
    for answer in (
        post(client, path, b"plain words"),
        post(client, path, b"plain words", Content_Type="text/plain"),
        post(client, path, b'["a list"]', Content_Type="application/json"),
        post(client, "/v2/models/digits/infer", SEVEN),
        post(client, "/predictions/sentences", V2 + b"\5\0\0\0hello", **binary),
    ):
        assert answer.status in (400, 415)
        assert "v2" in answer.json()["message"]


def test_kserve_v1_goes_on(client: Client) -> None:
    body = json.dumps({"instances": [TEXT]}).encode()
    for headers in ({"Content_Type": "application/json"}, {}, {"Content_Type": "application/octet-stream"}):
        answer = post(client, "/v1/models/sentences:predict", body, **headers)
        assert (answer.status, len(answer.json()["predictions"][0])) == (200, 384)


@pytest.mark.parametrize(
    "path",
    [
        "/predictions/sentences/1.0/nothing",
        "/predictions/sentences/1.0//x",
        "/explanations/sentences",
        "/v1/models/sentences:explain",
        "/v2/models/sentences/explain",
    ],
)
def test_paths_that_nothing_answers(client: Client, path: str) -> None:
    answer = post(client, path, json.dumps({"instances": [TEXT]}).encode(), Content_Type="application/json")
    assert refused(answer) == (404, "UnknownPath")


def test_envelopes_of_others_are_refused(client: Client) -> None:
    for body in (
        {"input": TEXT, "model": "m"},
        {"inputs": [{"name": "t", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]},
        {"inputs": TEXT, "options": {}},
        {"data": TEXT},
    ):
        for headers in ({}, {"Content_Type": "application/json"}):
            assert post(client, "/predictions/sentences", json.dumps(body).encode(), **headers).status == 400


def test_the_description_is_not_for_clients_of_inference(client: Client) -> None:
    token = f"Authorization: Bearer {client.token('inference')}\r\n"
    lines = {
        "POST /predictions/digits": "Content-Length: 0\r\n",
        "GET /predictions/digits": "",
        "GET /models/digits/invoke": "",
        "POST /invocations?model_name=digits": "",
        # The first content type makes the front end read an empty form; it hands the last one on.
        "POST /models/digits/invoke": "Content-Type: application/x-www-form-urlencoded\r\n"
        "Content-Type: text/plain\r\nContent-Length: 0\r\n",
    }
    parsed = urlparse(client.inference)
    for line, headers in lines.items():
        with socket.create_connection((parsed.hostname, parsed.port or 80), timeout=30) as connection:
            connection.sendall(
                f"{line} HTTP/1.1\r\nConnection: close\r\ndescribe: True\r\n{token}{headers}\r\n".encode()
            )
            answer = connection.makefile("rb").readline()
        assert b" 400 " in answer, line
    assert client.customized("digits")["kind"] == "image-classifier"


def test_encodings_are_refused_by_name(client: Client) -> None:
    zipped = gzip.compress(TEXT.encode())
    for headers in ({"Content_Encoding": "br"}, {"Content_Type": "text/plain"}, {}):
        answer = post(client, "/predictions/sentences", zipped, **headers)
        assert refused(answer) == (415, "UnsupportedMediaType")
        assert "gzip" in answer.json()["message"] or "content-encoding" in answer.json()["message"]
    answer = post(client, "/predictions/digits", gzip.compress(SEVEN))
    assert "(gzip)" in answer.json()["message"]


def test_charsets_and_byte_order_marks(client: Client) -> None:
    wanted = client.predict("sentences", TEXT.encode(), "text/plain").json()
    quoted = json.dumps(TEXT, ensure_ascii=False)
    for body, content_type in (
        (TEXT.encode("utf-16-le"), "text/plain; charset=utf-16le"),
        (TEXT.encode("cp1252"), 'text/plain; charset="windows-1252"'),
        (TEXT.encode("utf-16"), "text/plain"),
        (TEXT.encode("utf-8-sig"), "text/plain; charset=utf-8"),
        (quoted.encode("utf-8-sig"), "application/json"),
        (quoted.encode("iso-8859-15"), "application/json; charset=iso-8859-15"),
    ):
        answer = client.predict("sentences", body, content_type)
        np.testing.assert_allclose(answer.json(), wanted, atol=1e-5, err_msg=content_type)
    for content_type in ("text/plain; charset=klingon", "application/json; charset=klingon"):
        assert client.predict("sentences", quoted.encode(), content_type).status == 415
    assert client.predict("sentences", b"a\0b\0", "text/plain").status == 400


def test_json_without_a_content_type(client: Client) -> None:
    wanted = client.predict("sentences", TEXT.encode(), "text/plain").json()
    quoted, listed = json.dumps(TEXT).encode(), json.dumps([TEXT]).encode()
    np.testing.assert_allclose(post(client, "/predictions/sentences", quoted).json(), wanted, atol=1e-5)
    np.testing.assert_allclose(post(client, "/predictions/sentences", listed).json(), [wanted], atol=1e-5)
    for parts in (
        [("text", "", quoted)],
        [("a.json", '; filename="a.json"', quoted)],
        [("a.json", '; filename="a.json"\r\nContent-Type: application/json', quoted)],
        [("a.txt", '; filename="a.txt"\r\nContent-Type: text/plain', TEXT.encode())],
    ):
        np.testing.assert_allclose(client.predict("sentences", *form(*parts)).json(), wanted, atol=1e-5)
    for body in (b"42", b"null", b"[1]", b'{"broken": ', b"{}"):
        assert post(client, "/predictions/sentences", body).status == 400
        assert post(client, "/predictions/sentences", body, Content_Type="text/plain").status == 200


def test_fields_that_are_neither_inputs_nor_options(client: Client) -> None:
    for model, data in (("sentences", b"A sentence."), ("digits", SEVEN)):
        for head in ("", '; filename="x"\r\nContent-Type: application/octet-stream'):
            fine = client.predict(model, *form(("data", head, data)))
            wrong = client.predict(model, *form(("data", head, data), ("topk", "", b"3")))
            assert (fine.status, *refused(wrong)) == (200, 400, "InvalidOption")
            assert "'topk'" in wrong.json()["message"]
    assert refused(post(client, "/predictions/digits", SEVEN, X_TopK="3")) == (400, "InvalidOption")
    assert refused(post(client, "/predictions/sentences", b"text", X_Top_K="3")) == (400, "InvalidOption")


def test_what_torchserve_answers_itself_is_as_readme_says(client: Client) -> None:
    assert request("GET", f"{client.inference}/ping").status == 400
    encoded = '; filename="x"\r\nContent-Transfer-Encoding: base64'
    assert client.predict("digits", *form(("data", encoded, b"AAAA"))).status == 500


def test_a_rest_client_cannot_pass_for_grpc(client: Client) -> None:
    """It would wait for the rest of a stream for ever: without any header, chunked, or with gRPC's own."""
    token = f"Authorization: Bearer {client.token('inference')}\r\n"
    parsed = urlparse(client.inference)
    for sent in (
        f"POST /invocations?model_name=sentences HTTP/1.0\r\n{token}\r\n",
        f"GET /models/sentences/invoke HTTP/1.1\r\n{token}\r\n",
        f"POST /predictions/sentences HTTP/1.1\r\n{token}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        f"POST /predictions/sentences HTTP/1.1\r\n{token}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        "3\r\nabc\r\n0\r\n\r\n",
        f"POST /predictions/sentences HTTP/1.1\r\n{token}content-type: application/grpc\r\nte: trailers\r\n"
        "ts_request_sequence_id: x\r\nts_stream_next: false\r\nContent-Length: 3\r\n\r\nabc",
    ):
        with socket.create_connection((parsed.hostname, parsed.port or 80), timeout=30) as connection:
            connection.sendall(sent.encode())
            connection.settimeout(10)
            head, _, rest = connection.recv(1 << 20).partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while len(rest) < length:
                rest += connection.recv(1 << 20)
            json.loads(rest)
