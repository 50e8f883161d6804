"""Exported archives in a real Triton, on the CPU: its answers are those of the archive's own protocol v2.

They are compared with load_archive's, and test_hosts_agree.py compares those with TorchServe's.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server.http import request

from handlers import HttpRequest, Model, load_archive
from tests.e2e.triton_server import triton
from tests.hosts_table import JSON, PIXELS, WORDS, b64, dumped, png, tensor

pytestmark = pytest.mark.e2e
MODELS = ("digits", "sentences", "reranker")


@dataclass(frozen=True)
class Asked:
    """A request of the protocol v2. status: the archive's own; Triton has 400 for each 4xx but 404."""

    label: str
    model: str
    inputs: tuple[dict[str, object], ...]
    parameters: Mapping[str, object]
    status: int = 200

    def body(self) -> bytes:
        return dumped({"inputs": list(self.inputs), "parameters": dict(self.parameters)})


def asked(label: str, model: str, *inputs: dict[str, object], status: int = 200, **parameters: object) -> Asked:
    return Asked(label, model, inputs, parameters, status)


def texts(*values: str, name: str = "text") -> dict[str, object]:
    return tensor(name, [len(values), 1], "BYTES", list(values))


def image(*values: str) -> dict[str, object]:
    return tensor("image", [len(values), 1], "BYTES", list(values))


FLAT = PIXELS.reshape(-1).tolist()
ONE_OF_PIXELS = tensor("pixels", [1, 3, 32, 32], "FP32", FLAT[:3072])
WHOLE = [90] * (48 * 40 * 3)
TABLE = (
    asked("an image", "digits", image(b64("seven"))),
    asked("images", "digits", image(b64("two"), b64("nine"))),
    asked("an option", "digits", image(b64("two")), top_k=1),
    asked("pixels", "digits", tensor("pixels", [2, 3, 32, 32], "FP32", FLAT)),
    asked("a picture", "digits", tensor("pixels_uint8", [1, 48, 40, 3], "UINT8", WHOLE)),
    asked("junk", "digits", image(b64("seven"), "YQ=="), status=415),
    asked("no base64", "digits", image("S3CRET!"), status=400),
    asked("a wrong option", "digits", image(b64("two")), top_k="eleven", status=400),
    asked("an unknown option", "digits", image(b64("two")), top_n=1, status=400),
    asked("a wrong size", "digits", tensor("pixels", [1, 3, 7, 7], "FP32", [0.0] * 147), status=400),
    asked("two kinds", "digits", image(b64("two")), ONE_OF_PIXELS, status=400),
    asked("texts", "sentences", texts(WORDS, "日本語")),
    asked("a long text, cut", "sentences", texts("word " * 300), truncate=True),
    asked("a long text", "sentences", texts("word " * 300), status=400),
    asked("an empty text", "sentences", texts("a", ""), status=400),
    asked("not normalised", "sentences", texts(WORDS), normalize=False),
    asked("a text alone", "reranker", texts("a")),
    asked("a pair", "reranker", texts("a", "c"), texts(WORDS, "d", name="text_pair")),
)  # fmt: skip


@pytest.fixture(scope="module")
def store(model_store: Path, tmp_path_factory: pytest.TempPathFactory, packager: Any) -> Path:
    """The demo archives, and a small cross-encoder."""
    from tests.e2e.conftest import cross_encoder

    if not (model_store / "reranker.mar").exists():
        folder = tmp_path_factory.mktemp("cross-encoder")
        cross_encoder(folder)
        packager(model_store, "text-encoder", "--weights", str(folder), "--precision", "fp32", "--name", "reranker")
    return model_store


@pytest.fixture(scope="module")
def url(store: Path) -> Iterator[str]:
    with triton(store, MODELS) as found:
        yield found


@pytest.fixture(scope="module")
def models(store: Path) -> Iterator[Mapping[str, Model]]:
    found = {name: load_archive(store / f"{name}.mar") for name in MODELS}
    yield found
    for model in found.values():
        model.close()


def infer(url: str, model: str, body: bytes) -> Any:
    return request("POST", f"{url}/v2/models/{model}/infer", body, JSON)


def tensors(body: bytes) -> dict[str, list[Any]]:
    """Outputs by name; numbers as float32, which is what the model gave."""
    found = {}
    for output in json.loads(body)["outputs"]:
        is_text = output["datatype"] == "BYTES"
        found[output["name"]] = output["data"] if is_text else np.array(output["data"], np.float32).tolist()
    return found


@pytest.mark.parametrize("sent", TABLE, ids=lambda sent: f"{sent.model}: {sent.label}")
def test_the_answer_is_the_archives(sent: Asked, url: str, models: Mapping[str, Model]) -> None:
    wanted = models[sent.model].answer(HttpRequest(headers=JSON, body=sent.body(), door="kserve"))
    answer = infer(url, sent.model, sent.body())
    assert wanted.status == sent.status, wanted.body
    if sent.status == 200:
        assert answer.status == 200, answer.body
        assert tensors(answer.body) == tensors(wanted.body)
    else:
        assert answer.status == 400
        assert answer.json() == json.loads(wanted.body)


def test_images_as_raw_bytes(url: str) -> None:
    file = png("seven")
    block = struct.pack("<I", len(file)) + file
    described = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1, 1],
        "parameters": {"binary_data_size": len(block)},
    }
    head = dumped({"inputs": [described]})
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    answer = request("POST", f"{url}/v2/models/digits/infer", head + block, headers)
    assert answer.status == 200, answer.body
    assert tensors(answer.body)["labels"][0] == "7"


def test_outputs_that_are_asked_for(url: str) -> None:
    body = dumped({"inputs": [image(b64("seven"))], "outputs": [{"name": "labels"}]})
    assert tensors(infer(url, "digits", body).body).keys() == {"labels"}


def test_fp16_outputs_are_refused(url: str) -> None:
    answer = infer(url, "sentences", dumped({"inputs": [texts("a")], "parameters": {"dtype": "float16"}}))
    assert answer.status == 400
    assert "declared as FP32" in answer.json()["error"]


def test_requests_at_once_share_a_batch_and_hurt_no_neighbour(url: str) -> None:
    before = statistics(url)
    bodies = [dumped({"inputs": [image(b64("seven"))]}), dumped({"inputs": [image("YQ==")]})] * 24
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: infer(url, "digits", body), bodies))
    assert [answer.status for answer in answers] == [200, 400] * 24
    assert {tensors(answer.body)["labels"][0] for answer in answers[::2]} == {"7"}
    after = statistics(url)
    assert after["execution_count"] - before["execution_count"] < len(bodies)


def statistics(url: str) -> dict[str, int]:
    """Triton's counts for digits."""
    found: dict[str, int] = request("GET", f"{url}/v2/models/digits/stats").json()["model_stats"][0]
    return found


def test_too_many_inputs(url: str) -> None:
    answer = infer(url, "digits", dumped({"inputs": [image(*[b64("two")] * 65)]}))
    assert answer.status == 400
    assert "must be <= 64" in answer.json()["error"]


def test_an_unknown_model(url: str) -> None:
    assert infer(url, "nobody", dumped({"inputs": [texts("a")]})).status == 404
