"""The one set of requests that every host answers alike: TorchServe, the runner, and whatever else serves an archive.

tests/e2e/hosts.py lists the hosts. Each gets the requests that it can take, and its answers have to be TorchServe's.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from server.http import without_ids

SAMPLES = Path(__file__).parents[1] / "archive" / "digits" / "samples"
MODELS = ("digits", "sentences", "reranker")
JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain"}
BOUNDARY = "a-boundary-that-no-image-holds"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
JUNK = b"no image, S3CRET"
PNG = "image/png"
WEB_FORM = {"Content-Type": "application/x-www-form-urlencoded"}
LATIN_1 = {"Content-Type": "text/plain; charset=latin-1"}
DIGITS, SENTENCES, PAIRED = (f"/predictions/{name}" for name in MODELS)


@dataclass(frozen=True)
class Asked:
    """One request.

    Args:
        target: the path as a client sends it.
        status: that every host answers with.
        triton_differs: why Triton does not take it as the other hosts do, although it has the path; "" if it does.
    """

    label: str
    target: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    triton_differs: str = ""

    @property
    def model(self) -> str:
        """The model that the path names."""
        return next(name for name in MODELS if re.search(rf"[/=]{name}\b", self.target))

    @property
    def not_on_triton(self) -> str:
        """Why Triton cannot take it; "" if it can. All other hosts take every request."""
        if self.target != f"/v2/models/{self.model}/infer":
            return "Triton has no such path: it speaks protocol v2 alone"
        return self.triton_differs

    def __str__(self) -> str:
        return f"{self.model}: {self.label}"


@dataclass(frozen=True)
class Reply:
    """What a client reads of an answer. headers: those that say how to read the body, by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        """Return the reply without what a front end adds to every answer: headers, and the request's id in errors."""
        lower = {name.lower(): value for name, value in headers.items()}
        names = ("content-type", "x-shape", "x-dtype", "inference-header-content-length")
        return cls(status, {name: lower[name] for name in names if name in lower}, without_ids(body))


def png(name: str) -> bytes:
    return (SAMPLES / f"{name}.png").read_bytes()


def b64(name: str) -> str:
    return base64.b64encode(png(name)).decode()


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def dumped(content: object) -> bytes:
    return json.dumps(content).encode()


def parts(*content: tuple[str, bytes, str]) -> bytes:
    """A form. content: name, bytes, and content type of each part; a part without a type is a field."""
    body = b""
    for name, data, kind in content:
        file = f'; filename="{name}"\r\nContent-Type: {kind}' if kind else ""
        body += (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n"
        )
    return body + f"--{BOUNDARY}--\r\n".encode()


def tensor(name: str, shape: list[int], datatype: str, data: object) -> dict[str, object]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def binary_infer(array: Any, name: str) -> tuple[bytes, dict[str, str]]:
    """KServe v2 with raw bytes behind the JSON, in and out."""
    raw = array.tobytes()
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": "FP32",
            "parameters": {"binary_data_size": len(raw)},
        }
    ]
    head = dumped({"inputs": inputs, "parameters": {"binary_data_output": True}})
    return head + raw, {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }


def v2(label: str, model: str, *inputs: dict[str, object], status: int = 200, **parameters: object) -> Asked:
    """Return a request of protocol v2 that Triton takes, too. status: Triton has 400 in place of each 4xx but 404."""
    body = dumped({"inputs": list(inputs), "parameters": parameters})
    return Asked(f"kserve v2: {label}", f"/v2/models/{model}/infer", body, JSON, status)


def texts(*values: str, name: str = "text") -> dict[str, object]:
    return tensor(name, [len(values), 1], "BYTES", list(values))


def image(*values: str) -> dict[str, object]:
    return tensor("image", [len(values), 1], "BYTES", list(values))


TWO_SIDES = "its inputs have the shape [N, 1], and here it is [N]"
PIXELS = np.linspace(-1, 1, 2 * 3 * 32 * 32, dtype=np.float32).reshape(2, 3, 32, 32)
BINARY, BINARY_HEADERS = binary_infer(PIXELS, "pixels")

IMAGES = (
    Asked("a file", DIGITS, png("seven")),
    Asked("a file of a version", "/predictions/digits/1.0", png("one")),
    Asked("a file as png", DIGITS, png("two"), {"Content-Type": "image/png"}),
    Asked("a file with a header's option", DIGITS, png("two"), {"X-Top-K": "2"}),
    Asked("base64", DIGITS, dumped({"b64": b64("six")}), JSON),
    Asked("several in base64", DIGITS, dumped([b64("two"), {"b64": b64("nine")}]), JSON),
    Asked("base64 without a content type", DIGITS, dumped([b64("two")])),
    Asked("tensors", DIGITS, npy(PIXELS)),
    Asked("one tensor", DIGITS, npy(PIXELS[0])),
    Asked("a picture as uint8", DIGITS, npy(np.full((48, 40, 3), 90, np.uint8))),
    Asked("gzip", DIGITS, gzip.compress(png("four"), mtime=0), {"Content-Encoding": "gzip"}),
    Asked("instances", DIGITS, dumped({"instances": [b64("two")], "parameters": {"top_k": 1}}), JSON),
    Asked("kserve v1", "/v1/models/digits:predict", dumped({"instances": [b64("three"), b64("four")]}), JSON),
    Asked("kserve v1 without instances", "/v1/models/digits:predict", dumped([1]), JSON, 400),
    Asked("kserve v1 explain", "/v1/models/digits:explain", dumped({"instances": [b64("three")]}), JSON, 404),
    Asked(
        "kserve v2",
        "/v2/models/digits/infer",
        dumped({"id": "x", "inputs": [tensor("image", [1], "BYTES", [b64("five")])]}),
        JSON,
        triton_differs=TWO_SIDES,
    ),
    Asked("kserve v2 with raw bytes", "/v2/models/digits/infer", BINARY, BINARY_HEADERS),
    Asked(
        "kserve v2 of a wrong shape",
        "/v2/models/digits/infer",
        dumped({"inputs": [tensor("pixels", [7], "FP32", [0.0])]}),
        JSON,
        400,
        triton_differs="it refuses a shape of another number of sides itself, in its own words",
    ),
    Asked("kserve v2 behind a version", "/predictions/digits/1.0/v2/models/digits/ready"),
    Asked("kserve v2's metadata", "/predictions/digits/1.0/v2/models/digits"),
    Asked("a form", DIGITS, parts(("a", png("four"), PNG), ("b", png("nine"), "")), FORM),
    Asked("a form with an option", DIGITS, parts(("a", png("four"), PNG), ("top_k", b"1", "")), FORM),
    Asked("a form with junk", DIGITS, parts(("a", png("four"), PNG), ("b", JUNK, PNG)), FORM, 415),
    Asked("a form without an end", DIGITS, b"no form", {"Content-Type": "multipart/form-data"}, 415),
    Asked("a web form", DIGITS, b"a=1&b=2", WEB_FORM, 415),
    Asked("nothing", DIGITS, b"", {}, 400),
    Asked("an empty list", DIGITS, b"[]", JSON, 400),
    Asked("junk", DIGITS, JUNK, {}, 415),
    Asked("junk among good ones", DIGITS, dumped([b64("two"), "YQ=="]), JSON, 415),
    Asked("broken JSON", DIGITS, b'{"instances": [', JSON, 400),
    Asked("a wrong option", DIGITS, png("two"), {"X-Top-K": "eleven"}, 400),
    Asked("an unknown option", DIGITS, png("two"), {"X-Top-N": "1"}, 400),
    Asked("an impossible Accept", DIGITS, png("two"), {"Accept": "text/html"}, 406),
    Asked("an unknown path", "/predictions/digits/1.0/no/such/path", png("two"), {}, 404),
    Asked("a path of texts", "/predictions/digits/1.0/v1/embeddings", dumped({"input": "x"}), JSON, 404),
    Asked("an explanation", "/explanations/digits", png("two"), {}, 404),
    Asked("an invocation", "/invocations?model_name=digits&top_k=1", png("three")),
    Asked("an invocation with a wrong option", "/invocations?model_name=digits&top=1", png("three"), {}, 400),
    Asked("too many", DIGITS, dumped([b64("two")] * 65), JSON, 413),
    Asked("another coding", DIGITS, png("two"), {"Content-Encoding": "br"}, 415),
)  # fmt: skip

WORDS = "The quick brown fox jumps over the lazy dog."
OPENAI = "/predictions/sentences/1.0/v1/embeddings"
TEI = "/predictions/sentences/1.0"
NPY = {"Accept": "application/x-npy"}
SIMILAR = {"source_sentence": "a", "sentences": ["b", "a"]}
RAW = {"Accept": "application/octet-stream", "X-Dtype": "float16"}

TEXTS = (
    Asked("a text", SENTENCES, WORDS.encode(), TEXT),
    Asked("a text in latin-1", SENTENCES, "Ein Wört.".encode("latin-1"), LATIN_1),
    Asked("a JSON text", SENTENCES, dumped(WORDS), JSON),
    Asked("texts", SENTENCES, dumped([WORDS, "Two.", "日本語"]), JSON),
    Asked("base64", SENTENCES, dumped([WORDS]), JSON | {"X-Encoding-Format": "base64"}),
    Asked("npy", SENTENCES, dumped([WORDS, "Two."]), JSON | NPY),
    Asked("float16", SENTENCES, dumped([WORDS, "Two."]), JSON | RAW),
    Asked("not normalised", SENTENCES, dumped([WORDS]), JSON | {"X-Normalize": "false"}),
    Asked("hugging face", SENTENCES, dumped({"inputs": [WORDS, "b"]}), JSON),
    Asked("openai", OPENAI, dumped({"input": [WORDS, "b"], "model": "sentences"}), JSON),
    Asked("openai in base64", OPENAI, dumped({"input": WORDS, "encoding_format": "base64"}), JSON),
    Asked("openai with token ids", OPENAI, dumped({"input": [[101, 2023, 102]], "model": "sentences"}), JSON),
    Asked("openai of another model", OPENAI, dumped({"input": "a", "model": "gpt"}), JSON, 404),
    Asked("openai without input", OPENAI, dumped({"model": "sentences"}), JSON, 400),
    Asked("tei embed", f"{TEI}/embed", dumped({"inputs": ["a", WORDS], "truncate": True}), JSON),
    Asked("tei embed_all", f"{TEI}/embed_all", dumped({"inputs": ["a", "b c"]}), JSON),
    Asked("tei similarity", f"{TEI}/similarity", dumped({"inputs": SIMILAR}), JSON),
    Asked("tei info", f"{TEI}/info"),
    Asked("tei health", f"{TEI}/health"),
    Asked("tei with a wrong field", f"{TEI}/embed", dumped({"inputs": "a", "colour": 1}), JSON, 422),
    Asked("tei rerank of another task", f"{TEI}/rerank", dumped({"query": "a", "texts": ["b"]}), JSON, 424),
    Asked("kserve v1", "/v1/models/sentences:predict", dumped({"instances": [WORDS]}), JSON),
    Asked(
        "kserve v2",
        "/v2/models/sentences/infer",
        dumped({"inputs": [tensor("t", [1], "BYTES", ["a"])]}),
        JSON,
        triton_differs="its inputs have fixed names, and this one is \"t\"",
    ),
    Asked("a form", SENTENCES, parts(("text1", b"one", ""), ("text2", b"two", "")), FORM),
    Asked("too long", SENTENCES, b"word " * 300, TEXT, 400),
    Asked("too long, cut", SENTENCES, b"word " * 300, TEXT | {"X-Truncate": "true"}),
    Asked("an empty text", SENTENCES, dumped(["a", ""]), JSON, 400),
    Asked("no UTF-8", SENTENCES, b"\xff\xfe\xfa", TEXT, 400),
    Asked("a number", SENTENCES, b"42", {}, 400),
    Asked("half a surrogate pair", SENTENCES, b'"\\ud800"', JSON, 400),
    Asked("an image", SENTENCES, png("two"), {"Content-Type": "image/png"}, 415),
)  # fmt: skip

RERANKED = "/predictions/reranker/1.0"
PAIRS = (
    Asked("a pair", PAIRED, dumped({"text": "a", "text_pair": WORDS}), JSON),
    Asked("pairs", PAIRED, dumped([{"text": "a", "text_pair": "b"}, "alone"]), JSON),
    Asked("a pair as a form", PAIRED, parts(("text", b"one", ""), ("text_pair", b"two", "")), FORM),
    Asked("raw scores", PAIRED, dumped({"text": "a", "text_pair": "b"}), JSON | {"X-Raw-Scores": "true"}),
    Asked("tei rerank", f"{RERANKED}/rerank", dumped({"query": "a", "texts": ["b", "c"], "return_text": True}), JSON),
    Asked("tei predict", f"{RERANKED}/predict", dumped({"inputs": [["a", "b"], ["c"]]}), JSON),
    Asked("jina", f"{RERANKED}/v1/rerank", dumped({"query": "a", "documents": ["b", "c d"], "top_n": 1}), JSON),
    Asked("cohere", f"{RERANKED}/v2/rerank", dumped({"query": "a", "documents": [{"text": "b"}]}), JSON),
    Asked("no documents", f"{RERANKED}/v2/rerank", dumped({"query": "a", "documents": []}), JSON, 400),
    Asked(
        "kserve v2",
        "/v2/models/reranker/infer",
        dumped({"inputs": [tensor("text", [1], "BYTES", ["a"])]}),
        JSON,
        triton_differs=TWO_SIDES,
    ),
)  # fmt: skip

FLAT = PIXELS.reshape(-1).tolist()
ONE_OF_PIXELS = tensor("pixels", [1, 3, 32, 32], "FP32", FLAT[:3072])
PICTURE = [90] * (48 * 40 * 3)
TENSORS = (
    v2("an image", "digits", image(b64("seven"))),
    v2("images", "digits", image(b64("two"), b64("nine"))),
    v2("an option", "digits", image(b64("two")), top_k=1),
    v2("pixels", "digits", tensor("pixels", [2, 3, 32, 32], "FP32", FLAT)),
    v2("a picture", "digits", tensor("pixels_uint8", [1, 48, 40, 3], "UINT8", PICTURE)),
    v2("junk", "digits", image(b64("seven"), "YQ=="), status=415),
    v2("no base64", "digits", image("S3CRET!"), status=400),
    v2("a wrong option", "digits", image(b64("two")), top_k="eleven", status=400),
    v2("an unknown option", "digits", image(b64("two")), top_n=1, status=400),
    v2("a wrong size", "digits", tensor("pixels", [1, 3, 7, 7], "FP32", [0.0] * 147), status=400),
    v2("two kinds", "digits", image(b64("two")), ONE_OF_PIXELS, status=400),
    v2("texts", "sentences", texts(WORDS, "日本語")),
    v2("a long text, cut", "sentences", texts("word " * 300), truncate=True),
    v2("a long text", "sentences", texts("word " * 300), status=400),
    v2("an empty text", "sentences", texts("a", ""), status=400),
    v2("not normalised", "sentences", texts(WORDS), normalize=False),
    v2("a text alone", "reranker", texts("a")),
    v2("pairs", "reranker", texts("a", "c"), texts(WORDS, "d", name="text_pair")),
)  # fmt: skip

TABLE = (*IMAGES, *TEXTS, *PAIRS, *TENSORS)
