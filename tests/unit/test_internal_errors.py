"""Errors that nobody expected, panics of libraries in Rust among them: the rows they hit get a 500, no other."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from handlers.protocol import internal_errors
from handlers.protocol.interface import Interface
from handlers.protocol.reader import Reader
from handlers.serving.handler import Handler
from handlers.serving.inputs import Inputs, Options

if TYPE_CHECKING:
    from tests.unit.conftest import FakeContext

MARKER = "S3CRET-of-a-user"
ROWS = [{"body": f"text {row}".encode()} for row in range(4)]


class PanicException(BaseException):
    """As pyo3_runtime has it."""


class Fake(Handler[Any, str]):
    """Answers a text by itself, and fails in the step that it is told to."""

    def __init__(self) -> None:
        self.metrics = SimpleNamespace(report=lambda *arguments: self.fail("metrics", ""))  # type: ignore[assignment]
        self.reader = Reader(Interface("a text", lambda media_type: media_type in ("", "text/plain"), 9))
        self.failing: dict[str, tuple[str, type[BaseException]]] = {}

    def fail(self, step: str, text: str) -> None:
        culprit, error = self.failing.get(step, ("none", ValueError))
        if culprit in text:
            raise error(f"{MARKER} in {text}")

    def prepare(self, inputs: Inputs[object]) -> Inputs[str]:
        return inputs.together(self.prepare_all)

    def prepare_all(self, texts: Sequence[object]) -> list[str]:
        for text in texts:
            self.fail("prepare", str(text))
        return list(map(str, texts))

    def answer(self, inputs: Inputs[str]) -> None:
        for text, request in zip(inputs.values, inputs.requests, strict=True):
            self.fail("answer", text)
            request.answers = [text]

    def predict(self, inputs: Sequence[tuple[str, Options]]) -> list[object]:
        raise AssertionError("answer() does not call it here")


@pytest.fixture
def ask_fake(
    context_for: Callable[..., FakeContext], caplog: pytest.LogCaptureFixture
) -> Callable[[Fake], list[tuple[int, Any]]]:
    """ask_fake(handler) -> (status, answer) by row; nothing of what was sent may be told."""

    def send(handler: Fake) -> list[tuple[int, Any]]:
        context = context_for()
        bodies = handler.handle(ROWS, context)
        assert MARKER not in caplog.text
        assert all(MARKER.encode() not in body for body in bodies)
        return [(context.statuses[row], json.loads(body)) for row, body in enumerate(bodies)]

    return send


Ask = Callable[[Fake], list[tuple[int, Any]]]
KINDS = [PanicException, ValueError, MemoryError, RecursionError]


@pytest.mark.parametrize("error", KINDS)
@pytest.mark.parametrize("culprit", range(4))
def test_in_preparing_only_the_culprit_fails(
    ask_fake: Ask, caplog: pytest.LogCaptureFixture, error: type[BaseException], culprit: int
) -> None:
    handler = Fake()
    handler.failing["prepare"] = (f"text {culprit}", error)
    answers = ask_fake(handler)
    assert [status for status, _ in answers] == [500 if row == culprit else 200 for row in range(4)]
    assert [answer for status, answer in answers if status == 200] == [
        f"text {row}" for row in range(4) if row != culprit
    ]
    assert error.__name__ in answers[culprit][1]["message"]
    (record,) = (one for one in caplog.records if one.levelno >= logging.ERROR)  # one stack for the batch
    assert "in fail" in record.getMessage()
    assert error.__name__ in record.getMessage()


@pytest.mark.parametrize("error", KINDS)
def test_behind_it_the_rows_without_an_answer_fail(
    ask_fake: Ask, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    handler = Fake()
    handler.failing["answer"] = ("text 2", error)
    answers = ask_fake(handler)
    assert [status for status, _ in answers] == [200, 200, 500, 500]
    assert [answer for _, answer in answers[:2]] == ["text 0", "text 1"]
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


def test_figures_that_cannot_be_reported_cost_no_answer(ask_fake: Ask) -> None:
    handler = Fake()
    handler.failing["metrics"] = ("", PanicException)
    assert [status for status, _ in ask_fake(handler)] == [200] * 4


@pytest.mark.parametrize("step", ["prepare", "answer", "metrics"])
@pytest.mark.parametrize("end", internal_errors.EXITS)
def test_what_ends_the_process_ends_it(ask_fake: Ask, step: str, end: type[BaseException]) -> None:
    """As handlers/serving/isolation.py does with a GPU that is lost."""
    handler = Fake()
    handler.failing[step] = ("", end)
    with pytest.raises(end):
        ask_fake(handler)


def test_a_chain_of_errors_is_logged_without_their_messages(caplog: pytest.LogCaptureFixture) -> None:
    def deep(depth: int) -> None:
        if depth:
            return deep(depth - 1)
        try:
            raise PanicException(MARKER)
        except PanicException as error:
            raise ValueError(MARKER) from error

    with pytest.raises(ValueError) as caught:
        deep(300)
    found = internal_errors.log_failure(caught.value, "answering")
    assert (found.status, found.message) == (500, "answering failed: ValueError; the server's log has where")
    assert MARKER not in caplog.text
    assert caplog.text.count("raised from:") == 1
    assert "PanicException" in caplog.text
    assert caplog.text.count("in deep") <= 2 * internal_errors.FRAMES
