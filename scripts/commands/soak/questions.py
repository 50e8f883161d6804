"""What is asked: distinct pictures and texts, and the forms of each protocol in which they are sent and answered."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from demo import DIGITS, SENTENCES
from PIL import Image

from soak.models import RERANKER

Vectors = np.ndarray[Any, np.dtype[np.float64]]  # (inputs, numbers)
COUNT, SIDE, CLASSES, DOCUMENTS = 40, 28, 10, 3
OCTETS, JSON = "application/octet-stream", "application/json"
BOUNDARY = "soak-boundary-that-nothing-holds"
WORDS = [
    *("parcel", "river", "invoice", "moon", "garden", "engine", "teacher", "winter", "bread", "signal", "museum"),
    *("ticket", "forest", "doctor", "letter", "bridge", "coffee", "market", "violin", "harbour", "window", "island"),
    *("planet", "kitchen", "lawyer", "desert", "camera", "village", "battery", "theatre", "ladder", "ocean"),
]


@dataclass(frozen=True)
class Message:
    """What is sent. path: of the inference port."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """A protocol's form of a request.

    name: for the report. model: that is asked. inputs: how many go into one request. write: makes the request for the
    inputs of these indices. read: makes one vector per input of the answer's body. Raises ValueError, KeyError,
    TypeError or IndexError for an answer of another form.
    """

    name: str
    model: str
    inputs: int
    write: Callable[[Sequence[int]], Message]
    read: Callable[[bytes], Vectors]


def pictures(count: int = COUNT) -> list[bytes]:
    """PNGs, each unlike the others: strokes at random places. The same ones each time."""
    found = []
    for seed in range(count):
        chance = np.random.default_rng(seed)
        pixels = np.zeros((SIDE, SIDE), np.float64)
        row, column = chance.uniform(6, SIDE - 6, 2)
        for _ in range(60):  # a wandering line, as wide as a pen's
            row, column = np.clip(np.array([row, column]) + chance.normal(0, 1.6, 2), 3, SIDE - 4)
            pixels[int(row) - 1 : int(row) + 2, int(column) - 1 : int(column) + 2] += 110
        with io.BytesIO() as stream:
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert("RGB").save(stream, "PNG")
            found.append(stream.getvalue())
    return found


def texts(count: int = COUNT) -> list[str]:
    """Texts of 3 to 60 words, each unlike the others. The same ones each time."""
    chance = random.Random(0)  # noqa: S311 - a choice of words, no secret
    return [" ".join(chance.choices(WORDS, k=chance.choice((3, 6, 12, 25, 60)))) for _ in range(count)]


class ImageForms:
    """The forms of an image classifier's requests."""

    def __init__(self, files: Sequence[bytes], model: str = DIGITS) -> None:
        self.files, self.model = files, model
        self.path = f"/predictions/{model}"

    def all(self) -> list[Form]:
        made = [
            ("TorchServe, file", 1, self._file, lambda body: _ranked([json.loads(body)])),
            ("TorchServe, .npy", 1, self._array, lambda body: _ranked([json.loads(body)])),
            ("TorchServe, form", 2, self._form, lambda body: _ranked(json.loads(body))),
            ("TorchServe, base64", 2, self._base64, lambda body: _ranked(json.loads(body))),
            ("KServe v1, images", 2, self._v1, lambda body: _ranked(json.loads(body)["predictions"])),
            ("KServe v2, images, JSON", 2, self._v2, _ranked_v2),
            ("KServe v2, images, bytes", 2, self._v2_bytes, _ranked_v2),
        ]
        return [Form(name, self.model, *rest) for name, *rest in made]  # type: ignore[arg-type]

    def _file(self, which: Sequence[int]) -> Message:
        return Message(self.path, self.files[which[0]], {"Content-Type": "image/png", "X-Top-K": str(CLASSES)})

    def _array(self, which: Sequence[int]) -> Message:
        with io.BytesIO() as stream:
            np.save(stream, np.asarray(Image.open(io.BytesIO(self.files[which[0]]))))
            return Message(self.path, stream.getvalue(), {"Content-Type": OCTETS, "X-Top-K": str(CLASSES)})

    def _form(self, which: Sequence[int]) -> Message:
        parts = [
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="p{at}"; filename="{at}.png"\r\n'
            "Content-Type: image/png\r\n\r\n".encode()
            + self.files[index]
            + b"\r\n"
            for at, index in enumerate(which)
        ]
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", "X-Top-K": str(CLASSES)}
        return Message(self.path, b"".join(parts) + f"--{BOUNDARY}--\r\n".encode(), headers)

    def _base64(self, which: Sequence[int]) -> Message:
        return _json(self.path, [{"b64": self._text(index)} for index in which], {"X-Top-K": str(CLASSES)})

    def _v1(self, which: Sequence[int]) -> Message:
        content = {"instances": [self._text(index) for index in which], "parameters": {"top_k": CLASSES}}
        return _json(f"/v1/models/{self.model}:predict", content)

    def _v2(self, which: Sequence[int]) -> Message:
        tensor = _tensor([self._text(index) for index in which])
        return _json(f"/v2/models/{self.model}/infer", {"inputs": [tensor], "parameters": {"top_k": CLASSES}})

    def _v2_bytes(self, which: Sequence[int]) -> Message:
        content = {"parameters": {"top_k": CLASSES}}
        return _with_bytes(f"/v2/models/{self.model}/infer", content, [self.files[index] for index in which])

    def _text(self, index: int) -> str:
        return base64.b64encode(self.files[index]).decode()


class TextForms:
    """The forms of a text encoder's requests, for embeddings."""

    def __init__(self, sentences: Sequence[str], model: str = SENTENCES, version: str = "1.0") -> None:
        self.sentences, self.model = sentences, model
        self.path, self.base = f"/predictions/{model}", f"/predictions/{model}/{version}"

    def all(self) -> list[Form]:
        made = [
            ("TorchServe, text", 1, self._plain, lambda body: _vectors([json.loads(body)])),
            ("TorchServe, JSON", 3, self._list, lambda body: _vectors(json.loads(body))),
            ("TorchServe, gzip", 3, self._gzip, lambda body: _vectors(json.loads(body))),
            ("TorchServe, form", 1, self._form, lambda body: _vectors([json.loads(body)])),
            (
                "TorchServe, raw answer",
                2,
                self._raw,
                lambda body: _vectors(np.frombuffer(body, "<f4").reshape(2, -1)),
            ),
            ("TorchServe, .npy answer", 2, self._npy, lambda body: _vectors(np.load(io.BytesIO(body)))),
            ("KServe v1, texts", 2, self._v1, lambda body: _vectors(json.loads(body)["predictions"])),
            ("KServe v2, texts, JSON", 3, self._v2, _embeddings_v2),
            ("KServe v2, texts, bytes", 3, self._v2_bytes, _embeddings_v2),
            ("OpenAI, float", 2, self._openai, _openai),
            ("OpenAI, base64", 2, self._openai_base64, _openai),
            ("TEI, embed", 3, self._tei, lambda body: _vectors(json.loads(body))),
        ]
        return [Form(name, self.model, *rest) for name, *rest in made]  # type: ignore[arg-type]

    def _of(self, which: Sequence[int]) -> list[str]:
        return [self.sentences[index] for index in which]

    def _plain(self, which: Sequence[int]) -> Message:
        return Message(self.path, self._of(which)[0].encode(), {"Content-Type": "text/plain"})

    def _list(self, which: Sequence[int]) -> Message:
        return _json(self.path, self._of(which))

    def _gzip(self, which: Sequence[int]) -> Message:
        body = gzip.compress(json.dumps(self._of(which)).encode())
        return Message(self.path, body, {"Content-Type": JSON, "Content-Encoding": "gzip"})

    def _form(self, which: Sequence[int]) -> Message:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="text"\r\n\r\n{self._of(which)[0]}\r\n'
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        return Message(self.path, f"{head}--{BOUNDARY}--\r\n".encode(), headers)

    def _raw(self, which: Sequence[int]) -> Message:
        return _json(self.path, self._of(which), {"Accept": OCTETS})

    def _npy(self, which: Sequence[int]) -> Message:
        return _json(self.path, self._of(which), {"Accept": "application/x-npy"})

    def _v1(self, which: Sequence[int]) -> Message:
        return _json(f"/v1/models/{self.model}:predict", {"instances": self._of(which)})

    def _v2(self, which: Sequence[int]) -> Message:
        return _json(f"/v2/models/{self.model}/infer", {"inputs": [_tensor(self._of(which))]})

    def _v2_bytes(self, which: Sequence[int]) -> Message:
        return _with_bytes(f"/v2/models/{self.model}/infer", {}, [text.encode() for text in self._of(which)])

    def _openai(self, which: Sequence[int]) -> Message:
        return _json(f"{self.base}/v1/embeddings", {"model": self.model, "input": self._of(which)})

    def _openai_base64(self, which: Sequence[int]) -> Message:
        content = {"model": self.model, "input": self._of(which), "encoding_format": "base64"}
        return _json(f"{self.base}/v1/embeddings", content)

    def _tei(self, which: Sequence[int]) -> Message:
        return _json(f"{self.base}/embed", {"inputs": self._of(which), "normalize": True})


class RerankForms:
    """The forms of a reranker's requests. An input is a query with the texts that follow it."""

    def __init__(self, sentences: Sequence[str], model: str = RERANKER, version: str = "1.0") -> None:
        self.sentences, self.model, self.base = sentences, model, f"/predictions/{model}/{version}"

    def all(self) -> list[Form]:
        return [
            Form("TEI, rerank", self.model, 1, self._tei, lambda body: _scores(json.loads(body), "score")),
            Form("Jina and Cohere, rerank", self.model, 1, self._jina, _jina),
        ]

    def _documents(self, index: int) -> list[str]:
        return [self.sentences[(index + step) % len(self.sentences)] for step in range(1, DOCUMENTS + 1)]

    def _tei(self, which: Sequence[int]) -> Message:
        content = {"query": self.sentences[which[0]], "texts": self._documents(which[0])}
        return _json(f"{self.base}/rerank", content)

    def _jina(self, which: Sequence[int]) -> Message:
        content = {"model": self.model, "query": self.sentences[which[0]], "documents": self._documents(which[0])}
        return _json(f"{self.base}/v1/rerank", content)


def bad_messages(file: bytes, text: str) -> dict[str, tuple[str, Message]]:
    """Requests that are to be refused: by name, the model and what is sent."""
    digits, sentences = f"/predictions/{DIGITS}", f"/predictions/{SENTENCES}"
    png, plain = {"Content-Type": "image/png"}, {"Content-Type": "text/plain"}
    broken = {"Content-Type": JSON, "Content-Encoding": "gzip"}
    return {
        "half a PNG": (DIGITS, Message(digits, file[: len(file) // 2], png)),
        "no image": (DIGITS, Message(digits, b"\x89PNG and then nothing", png)),
        "a text for an image model": (DIGITS, Message(digits, text.encode(), plain)),
        "an empty body": (DIGITS, Message(digits, b"", png)),
        "an option out of range": (DIGITS, Message(digits, file, {**png, "X-Top-K": "99"})),
        "a tensor of another shape": (DIGITS, _json(f"/v2/models/{DIGITS}/infer", {"inputs": [_tensor(["AA=="])]})),
        "broken JSON": (SENTENCES, Message(sentences, b'["' + text.encode(), {"Content-Type": JSON})),
        "broken UTF-8": (SENTENCES, Message(sentences, b"\xff\xfe\xfa", plain)),
        "broken gzip": (SENTENCES, Message(sentences, gzip.compress(text.encode())[:-9], broken)),
        "a text that is too long": (SENTENCES, Message(sentences, b"word " * 2000, plain)),
        "too many inputs": (SENTENCES, _json(sentences, [text] * 100)),
        "an unknown path": (SENTENCES, _json(f"{sentences}/1.0/v1/nothing", {"input": text})),
        "another model's name": (SENTENCES, _json(f"{sentences}/1.0/v1/embeddings", {"model": "no", "input": text})),
        "another model's task": (SENTENCES, _json(f"{sentences}/1.0/rerank", {"query": text, "texts": [text]})),
        "an unknown model": ("", Message("/predictions/nobody", file, png)),
        "an unknown version": (SENTENCES, Message(f"{sentences}/7.0", text.encode(), plain)),
        "no token": ("", Message(sentences, text.encode(), {**plain, "Authorization": ""})),
    }


def _json(path: str, content: object, headers: Mapping[str, str] | None = None) -> Message:
    return Message(path, json.dumps(content).encode(), {"Content-Type": JSON, **(headers or {})})


def _tensor(data: Sequence[str]) -> dict[str, object]:
    return {"name": "input", "datatype": "BYTES", "shape": [len(data)], "data": list(data)}


def _with_bytes(path: str, content: Mapping[str, object], elements: Sequence[bytes]) -> Message:
    """KServe v2 with its tensor as raw bytes behind the JSON."""
    raw = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    tensor: dict[str, object] = {"name": "input", "datatype": "BYTES", "shape": [len(elements)]}
    tensor["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({**content, "inputs": [tensor]}).encode()
    return Message(path, head + raw, {"Content-Type": OCTETS, "Inference-Header-Content-Length": str(len(head))})


def _vectors(rows: Any) -> Vectors:
    found = np.asarray(rows, np.float64)
    if found.ndim != 2:
        raise ValueError("the answer is no list of vectors")
    return found


def _ranked(answers: Any) -> Vectors:
    """(images, classes) of lists of labels with their probabilities, in the order of the classes."""
    found = np.zeros((len(answers), CLASSES))
    for row, ranking in enumerate(answers):
        for item in ranking:
            found[row, item["index"]] = item["probability"]
    return found


def _outputs(body: bytes) -> dict[str, Vectors]:
    outputs = json.loads(body)["outputs"]
    return {item["name"]: np.reshape(item["data"], item["shape"]) for item in outputs}


def _ranked_v2(body: bytes) -> Vectors:
    outputs = _outputs(body)
    found = np.zeros((len(outputs["scores"]), CLASSES))
    np.put_along_axis(found, outputs["indices"].astype(np.int64), outputs["scores"].astype(np.float64), 1)
    return found


def _embeddings_v2(body: bytes) -> Vectors:
    return _vectors(_outputs(body)["embeddings"])


def _openai(body: bytes) -> Vectors:
    items = sorted(json.loads(body)["data"], key=lambda item: int(item["index"]))
    values = [item["embedding"] for item in items]
    return _vectors([np.frombuffer(base64.b64decode(v), "<f4") if isinstance(v, str) else v for v in values])


def _scores(items: Any, key: str) -> Vectors:
    found = np.full((1, DOCUMENTS), np.nan)
    for item in items:
        found[0, item["index"]] = item[key]
    return found


def _jina(body: bytes) -> Vectors:
    return _scores(json.loads(body)["results"], "relevance_score")
