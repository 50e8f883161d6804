"""What scripts/ready sends, and what it makes of the answers, without a TorchServe."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ready
from PIL import Image
from server.client import Client
from server.errors import ServerError
from server.http import Answer

IMAGES, TEXTS = {"kind": "image-classifier"}, {"kind": "text-encoder"}


class FakeClient(Client):
    """A model with a ready worker that answers as `answers` says, in turn."""

    about: Mapping[str, Any] = TEXTS
    answers: tuple[Answer, ...] = ()
    sent: list[tuple[bytes, str, float]] = []  # noqa: RUF012 - set by each test

    def describe(self, model: str, version: str = "") -> dict[str, Any]:
        return {"workers": [{"id": "9000", "status": "READY"}]}

    def customized(self, model: str, *_: Any, **__: Any) -> dict[str, Any]:
        return dict(self.about)

    def predict(
        self, model: str, body: bytes, content_type: str = "", path: str = "", timeout_s: Any = None
    ) -> Answer:
        self.sent.append((body, content_type, self.timeout_s))
        return self.answers[len(self.sent) - 1]


def client(monkeypatch: pytest.MonkeyPatch, about: Mapping[str, Any], *answers: tuple[int, object]) -> FakeClient:
    made = tuple(Answer(status, {}, json.dumps(content).encode()) for status, content in answers)
    for name, value in (("about", about), ("answers", made), ("sent", [])):
        monkeypatch.setattr(FakeClient, name, value)
    return FakeClient(Path(), {})


def ask(found: FakeClient, timeout_s: float = 5) -> float:
    return ready.ask(found, "model", time.monotonic() + timeout_s)


def test_an_image_classifier_gets_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    found = client(monkeypatch, IMAGES, (200, [{"label": "7"}]))
    assert ask(found) < 5000
    body, content_type, timeout_s = found.sent[0]
    with Image.open(io.BytesIO(body)) as image:
        assert (image.format, image.mode, image.size, content_type) == ("JPEG", "RGB", (500, 375), "image/jpeg")
    assert 40_000 < len(body) < 80_000  # as photographs of this size have: 56 KB
    assert 0 < timeout_s <= 5


def test_a_text_encoder_gets_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    found = client(monkeypatch, TEXTS, (200, [0.1]))
    ask(found)
    assert found.sent[0][:2] == (b"ready", "text/plain")


@pytest.mark.parametrize(("refusals", "mask"), [(0, b"ready [MASK]"), (1, b"ready <mask>")])
def test_a_model_that_fills_masks_gets_its_own(monkeypatch: pytest.MonkeyPatch, refusals: int, mask: bytes) -> None:
    refused = [(400, {"message": "the text holds no mask"})] * refusals
    found = client(monkeypatch, {**TEXTS, "task": "fill-mask"}, *refused, (200, []))
    ask(found)
    assert found.sent[-1][0] == mask


def test_a_refusal_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerError, match="503 the queue is full"):
        ask(client(monkeypatch, TEXTS, (503, {"message": "the queue is full"})))


def test_a_handler_of_another_kind_gets_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    for about in ({}, {"kind": "another"}):
        found = client(monkeypatch, about)
        with pytest.raises(ServerError, match="no request for model"):
            ask(found)
        assert not found.sent


def test_after_the_time_limit_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    found = client(monkeypatch, TEXTS)
    with pytest.raises(TimeoutError, match="the time limit is reached"):
        ask(found, 0)
    assert not found.sent


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "soon"])
def test_a_limit_is_seconds(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ready.parser().parse_args(["--timeout-s", limit])
    assert "seconds above 0" in capsys.readouterr().err
