"""Requests as clients send them, through a real TorchServe."""

from __future__ import annotations

import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from demo import SAMPLES
from server.client import Client
from server.http import Answer, request
from server.process import Server
from serving_bench.prometheus import of_model

pytestmark = pytest.mark.e2e

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
JSON = "application/json"
BOUNDARY = "a-boundary-that-no-image-holds"


def png(label: int) -> bytes:
    return (SAMPLES / f"{NAMES[label]}.png").read_bytes()


def multipart(*parts: tuple[str, bytes]) -> tuple[bytes, str]:
    body = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}.png"\r\n'
        f"Content-Type: image/png\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, data in parts
    )
    return body + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"


def best(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == JSON
    return str(answer.json()[0]["label"])


def batches(client: Client, model: str) -> tuple[float, float]:
    """How many batches a model has run so far in all its versions, and how many requests were in them."""
    found = of_model(client.metrics(), model)
    return found.get("BatchSize_count", 0.0), found.get("BatchSize_sum", 0.0)


def settled_batches(client: Client, model: str, requests: float) -> tuple[float, float]:
    """`batches`, once they hold all of the requests: metrics reach TorchServe through the worker's log."""
    for _ in range(100):
        count, total = batches(client, model)
        if total >= requests:
            break
        time.sleep(0.1)
    return count, total


@pytest.mark.parametrize("label", range(10))
def test_raw_image(client: Client, label: int) -> None:
    assert best(client.predict("digits", png(label))) == str(label)


def test_multipart_images_are_answered_in_order(client: Client) -> None:
    answer = client.predict("digits", *multipart(("b", png(4)), ("a", png(9)), ("c", png(1))))
    assert [classes[0]["label"] for classes in answer.json()] == ["4", "9", "1"]


def test_parts_of_the_same_name_are_not_lost_silently(client: Client) -> None:
    answer = client.predict("digits", *multipart(("image", png(4)), ("image", png(9))))
    assert (answer.status, answer.json()["type"]) == (400, "InvalidInput")
    assert "name" in answer.json()["message"]


def test_base64_in_json(client: Client) -> None:
    encoded = [base64.b64encode(png(label)).decode() for label in (2, 6)]
    one = client.predict("digits", json.dumps({"b64": encoded[0]}).encode(), JSON)
    several = client.predict("digits", json.dumps(encoded).encode(), JSON)
    assert best(one) == "2"
    assert [classes[0]["label"] for classes in several.json()] == ["2", "6"]


def test_kserve_v1_form(client: Client) -> None:
    body = {"instances": [{"b64": base64.b64encode(png(5)).decode()}], "parameters": {"top_k": 2}}
    headers = {"Authorization": f"Bearer {client.token('inference')}", "Content-Type": JSON}
    answer = request("POST", f"{client.inference}/v1/models/digits:predict", json.dumps(body).encode(), headers)
    (classes,) = answer.json()["predictions"]
    assert [len(classes), classes[0]["label"]] == [2, "5"]


def test_ready_tensor(client: Client) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((2, 3, 32, 32), np.float32))
    answer = client.predict("digits", stream.getvalue())
    assert len(answer.json()) == 2


def test_options_as_header_and_as_query(client: Client) -> None:
    headers = {"Authorization": f"Bearer {client.token('inference')}", "X-Top-K": "1"}
    answer = request("POST", f"{client.inference}/predictions/digits", png(3), headers)
    assert len(answer.json()) == 1
    answer = request("POST", f"{client.inference}/invocations?model_name=digits&top_k=10", png(3), headers)
    assert len(answer.json()) == 10
    answer = request("POST", f"{client.inference}/predictions/digits", png(3), headers | {"X-Top-K": "eleven"})
    assert (answer.status, answer.json()["type"]) == (400, "InvalidOption")


def test_text_forms_agree(client: Client) -> None:
    plain = client.predict("sentences", b"A sentence.", "text/plain")
    quoted = client.predict("sentences", b'"A sentence."', JSON)
    (listed,) = client.predict("sentences", b'["A sentence."]', JSON).json()
    instances = client.predict("sentences", b'{"instances": ["A sentence."]}', JSON)
    assert len(plain.json()) == 384
    assert plain.json() == quoted.json() == listed == instances.json()["predictions"][0]


def test_similar_sentences_are_near(client: Client) -> None:
    texts = ["A cat sleeps on the sofa.", "On the couch lies a dozing kitten.", "The index fell by three percent."]
    vectors = np.array(client.predict("sentences", json.dumps(texts).encode(), JSON).json())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


def test_too_long_is_refused_with_both_numbers_and_truncated_on_request(client: Client) -> None:
    text = b"word " * 300
    answer = client.predict("sentences", text, "text/plain")
    assert (answer.status, answer.json()["type"]) == (400, "InputTooLong")
    assert "302" in answer.json()["message"]
    assert "256" in answer.json()["message"]
    body = json.dumps({"instances": [text.decode()], "parameters": {"truncate": True}}).encode()
    assert len(client.predict("sentences", body, JSON).json()["predictions"][0]) == 384


BAD_IMAGES: list[tuple[str, bytes, str, int]] = [
    ("EmptyRequest", b"", "", 400),
    ("EmptyRequest", b"[]", JSON, 400),
    ("InvalidJson", b'{"instances": [', JSON, 400),
    ("InvalidInput", b"0", JSON, 400),
    ("InvalidInput", b'"no base64!"', JSON, 400),
    ("UnsupportedMediaType", b"plain words", "", 415),
    ("UnsupportedMediaType", b"plain words", "text/plain", 415),
    ("InvalidImage", png(1)[:-700], "image/png", 400),
]


def ask_all(client: Client, model: str, bodies: list[tuple[bytes, str]]) -> list[Answer]:
    """All at once, each over its own connection."""
    client.token("inference")
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: client.predict(model, *body), bodies))


def probabilities(answer: Answer) -> list[float]:
    return [item["probability"] for item in answer.json()]


def test_64_concurrent_images_are_batched_and_equal_the_unbatched(client: Client) -> None:
    labels = [place % 10 for place in range(64)]
    alone = [client.predict("digits", png(label)) for label in range(10)]
    time.sleep(2.5)  # for the metrics of those, which a worker reports once per second
    count_before, asked_before = batches(client, "digits")
    answers = ask_all(client, "digits", [(png(label), "image/png") for label in labels])
    count, asked = settled_batches(client, "digits", asked_before + 64)
    assert asked - asked_before == 64
    assert count - count_before < 64 / 2  # more than two requests a batch, on average
    for label, answer in zip(labels, answers, strict=True):
        assert best(answer) == str(label)
        assert probabilities(answer) == pytest.approx(probabilities(alone[label]), abs=1e-5)


def test_64_concurrent_texts_equal_the_unbatched(client: Client) -> None:
    texts = [" ".join(["longer"] * (1 + place * 3)) for place in range(64)]
    alone = [client.predict("sentences", text.encode(), "text/plain").json() for text in texts]
    answers = ask_all(client, "sentences", [(text.encode(), "text/plain") for text in texts])
    together = [answer.json() for answer in answers]
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_bad_requests_in_a_batch_fail_alone(client: Client) -> None:
    good = [(png(label), "image/png") for label in range(10)] * 2
    bad = [(body, media_type) for _, body, media_type, _ in BAD_IMAGES]
    mixed: list[Any] = [item for pair in zip(good, bad * 3, strict=False) for item in pair]
    wanted = [item for pair in zip(range(20), BAD_IMAGES * 3, strict=False) for item in pair]
    alone = [client.predict("digits", png(label)) for label in range(10)]
    for answer, expected in zip(ask_all(client, "digits", mixed), wanted, strict=True):
        if isinstance(expected, int):
            assert best(answer) == str(expected % 10)
            assert probabilities(answer) == pytest.approx(probabilities(alone[expected % 10]), abs=1e-5)
        else:
            assert (answer.json()["type"], answer.status) == (expected[0], expected[3])


def test_a_lone_request_waits_no_longer_than_the_delay(client: Client) -> None:
    delay_s = 0.5
    query = {
        "url": "digits.mar",
        "model_name": "patient",
        "batch_size": 64,
        "max_batch_delay": int(delay_s * 1000),
        "initial_workers": 1,
        "synchronous": "true",
    }
    assert client.manage("POST", "/models", query).status == 200
    try:
        client.predict("patient", png(1))
        waited = []
        for _ in range(5):
            started = time.monotonic()
            assert best(client.predict("patient", png(8))) == "8"
            waited.append(time.monotonic() - started)
        # The rest is the answer itself: some 10 ms, and more on a busy machine.
        assert min(waited) < delay_s + 0.25
    finally:
        client.manage("DELETE", "/models/patient")


def test_a_client_can_turn_neither_itself_nor_its_neighbours_into_descriptions(client: Client) -> None:
    headers = {"Authorization": f"Bearer {client.token('inference')}", "describe": "True"}
    with ThreadPoolExecutor(16) as pool:
        described = pool.submit(request, "POST", f"{client.inference}/predictions/digits", png(1), headers)
        answers = list(pool.map(lambda label: client.predict("digits", png(label)), range(10)))
    assert (described.result().status, described.result().json()["type"]) == (400, "InvalidOption")
    assert [best(answer) for answer in answers] == [str(label) for label in range(10)]


def test_nothing_that_a_client_sent_is_logged(client: Client, server: Server) -> None:
    marker = "xyzzy-plugh-4711"
    for body, media_type in (
        (marker.encode(), "text/plain"),
        (f'["{marker}", 0]'.encode(), JSON),
        (f'{{"{marker}": [}}'.encode(), JSON),
        (f"{marker} {'a ' * 400}".encode(), "text/plain"),
        (marker.encode() + b"\xff", "text/plain"),
    ):
        client.predict("sentences", body, media_type)
        client.predict("digits", body, media_type)
    time.sleep(1)
    for log in (server.folder / "logs").iterdir():
        assert marker not in log.read_text(encoding="utf-8", errors="replace"), log
