"""Exported archives in a real Triton, on the CPU: its answers have TorchServe's values."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from server.http import request

from tests.e2e import hosts
from tests.e2e.triton_server import Triton, triton
from tests.hosts_table import JSON, Asked, Reply, b64, dumped, image, png, texts

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def host(torchserve: object, model_store: Path) -> Iterator[Triton]:
    with triton(model_store) as found:
        yield found


@pytest.fixture(scope="module")
def url(host: Triton) -> str:
    return host.url


@pytest.mark.parametrize("asked", hosts.rows("triton"), ids=str)
def test_the_answer_is_torchserves(asked: Asked, host: Triton, torchserve: Mapping[str, Reply]) -> None:
    hosts.compare("triton", host, asked, torchserve)


def infer(url: str, model: str, body: bytes) -> Any:
    return request("POST", f"{url}/v2/models/{model}/infer", body, JSON)


def outputs(answer: Any) -> dict[str, list[Any]]:
    return hosts.tensors(Reply.of(*answer))


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
    assert outputs(answer)["labels"][0] == "7"


def test_outputs_that_are_asked_for(url: str) -> None:
    body = dumped({"inputs": [image(b64("seven"))], "outputs": [{"name": "labels"}]})
    assert outputs(infer(url, "digits", body)).keys() == {"labels"}


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
    assert {outputs(answer)["labels"][0] for answer in answers[::2]} == {"7"}
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
