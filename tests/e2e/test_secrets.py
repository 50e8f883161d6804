"""What clients send comes into no log and no metric: planted words are sent every way, and looked for afterwards.

The request's path and query are missing here: TorchServe itself writes them into its access log. test_tls.py shows
that nginx takes the query away, and test_container.py that the log configuration for containers does.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import time
from collections.abc import Callable
from urllib.parse import urlparse

import pytest
from PIL import Image, PngImagePlugin

from tests.e2e.programs import Client, Server

pytestmark = pytest.mark.e2e

WORD = "Zx7PlantedQk"  # each way adds its own letters to it
BOUNDARY = "a-boundary-that-nothing-holds"
Way = Callable[[Client, str], object]


def post(client: Client, path: str, body: bytes, headers: dict[str, str]) -> int:
    parsed = urlparse(client.inference)
    connection = http.client.HTTPConnection(str(parsed.hostname), parsed.port, timeout=60)
    try:
        connection.request("POST", path, body, {"Authorization": f"Bearer {client.token('inference')}", **headers})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def text(client: Client, word: str, **headers: str) -> int:
    return post(client, "/predictions/sentences", word.encode(), {"Content-Type": "text/plain", **headers})


def as_json(client: Client, body: object, model: str = "sentences") -> int:
    headers = {"Content-Type": "application/json"}
    return post(
        client, f"/predictions/{model}", body if isinstance(body, bytes) else json.dumps(body).encode(), headers
    )


def form(client: Client, name: str, head: str, content: bytes, model: str = "sentences") -> int:
    body = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{head}\r\n\r\n'.encode()
    body += content + f"\r\n--{BOUNDARY}--\r\n".encode()
    return post(client, f"/predictions/{model}", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})


def image(word: str, kind: str = "PNG") -> bytes:
    """A picture that carries the word as text, or as a comment."""
    stream = io.BytesIO()
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", word)
    Image.new("RGB", (32, 32)).save(stream, kind, **({"pnginfo": notes} if kind == "PNG" else {"comment": word}))
    return stream.getvalue()


WAYS: dict[str, Way] = {
    "text": text,
    "longtext": lambda c, w: text(c, f"{w} " * 400),
    "json": lambda c, w: as_json(c, [w, {"text": w}]),
    "instances": lambda c, w: as_json(c, {"instances": [w]}),
    "brokenjson": lambda c, w: as_json(c, f'{{"instances": ["{w}", {w}'.encode()),
    "bytes": lambda c, w: as_json(c, b'["\xff' + w.encode() + b'"]'),
    "jsonkey": lambda c, w: as_json(c, {w: w}),
    "envelope": lambda c, w: as_json(c, {"inputs": [{"name": w, "datatype": w, "shape": [w], "data": [w]}]}),
    "parametername": lambda c, w: as_json(c, {"instances": ["a"], "parameters": {w: 1}}),
    "parametervalue": lambda c, w: as_json(c, {"instances": ["a"], "parameters": {"top_k": w, "truncate": w}}),
    "optionvalue": lambda c, w: text(c, "a", **{"X-Top-K": w}),
    "optionvalues": lambda c, w: text(c, "a", **{"X-Truncate": w, "X-Encoding-Format": w, "X-Dtype": w, "Accept": w}),
    "headername": lambda c, w: text(c, "a", **{f"X-{w}": w}),
    "charset": lambda c, w: post(c, "/predictions/sentences", b"a", {"Content-Type": f"text/plain; charset={w}"}),
    "contenttype": lambda c, w: post(c, "/predictions/sentences", w.encode(), {"Content-Type": f"image/{w}"}),
    "encoding": lambda c, w: text(c, w, **{"Content-Encoding": w}),
    "fieldname": lambda c, w: form(c, w, "", b"a"),
    "fieldvalue": lambda c, w: form(c, "topk", "", w.encode()),
    "filename": lambda c, w: form(c, "file", f'; filename="{w}.txt"\r\nContent-Type: text/{w}', w.encode()),
    "imagename": lambda c, w: form(c, "file", f'; filename="{w}.png"', image(w), "digits"),
    "imagenote": lambda c, w: post(c, "/predictions/digits", image(w), {}),
    "jpegnote": lambda c, w: post(c, "/predictions/digits", image(w, "JPEG"), {}),
    "cutimage": lambda c, w: post(c, "/predictions/digits", image(w)[:-30], {}),
    "noimage": lambda c, w: post(c, "/predictions/digits", w.encode() * 20, {}),
    "base64": lambda c, w: as_json(c, {"b64": base64.b64encode(image(w)).decode() + w}, "digits"),
    "wrongtoken": lambda c, w: text(c, "a", Authorization=f"Bearer {w}"),
    "cookie": lambda c, w: text(c, "a", **{"Cookie": w, "User-Agent": w, "Referer": w, "X-Forwarded-For": w}),
}


def grpc_way(client: Client, word: str) -> None:
    """As an entry's value and as another's name; a wrong token too."""
    grpc = pytest.importorskip("grpc", reason="needs the test extra's grpcio")
    from tests.e2e.test_tls import GRPC, field

    address = f"{client.config['grpc_inference_address']}:{client.config['grpc_inference_port']}"
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"{GRPC}.inference.InferenceAPIsService/Predictions")
        for key in (client.token("inference"), word):
            for name, value in (("data", f'{{"{word}'), (word, "a"), ("top_k", word)):
                entry = field(1, name.encode()) + field(2, value.encode())
                try:
                    call(
                        field(1, b"sentences") + field(3, entry),
                        metadata=(("authorization", f"Bearer {key}"),),
                        timeout=60,
                    )
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.PERMISSION_DENIED  # noqa: PT017, half of the calls succeed


def test_what_clients_send_is_in_no_log_and_no_metric(server: Server, client: Client) -> None:
    for name, way in {**WAYS, "grpc": grpc_way}.items():
        way(client, WORD + name)
    text(client, "THE END", **{"X-Top-K": "none"})
    time.sleep(1)  # logs are written off the request's path
    found = {}
    for path in server.folder.rglob("*"):
        if path.is_file():
            found[str(path)] = path.read_bytes().lower()
    found["metrics"] = client.metrics().encode().lower()
    assert sum(len(content) for name, content in found.items() if name.endswith(".log")) > 10_000
    wanted = [WORD.lower().encode(), base64.b64encode(WORD.encode())[:14].lower()]
    leaks = [
        f"{name}: {content[max(0, at - 150) : at + 60]!r}"
        for name, content in found.items()
        for word in wanted
        if (at := content.find(word)) >= 0
    ]
    assert not leaks, "\n".join(leaks)


def test_tokens_are_in_no_log(server: Server, client: Client) -> None:
    keys = [client.token("inference"), client.token("management")]
    for path in (server.folder / "logs").rglob("*"):
        content = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        assert not any(key in content for key in keys), path.name
