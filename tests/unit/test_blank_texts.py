"""A text without a token of its own gets the answer of an empty text, by every protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.unit.conftest import Send

BLANK = {"blanks": "  \n", "characters without a token": "\u200b\x07"}


def tensor(text: str) -> dict[str, object]:
    return {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["fine", text]}


def bodies(text: str) -> list[tuple[str, object]]:
    """Return the path and the body of a request with the text, per protocol."""
    return [
        ("", text),
        ("", ["fine", text]),
        ("", {"instances": ["fine", text]}),
        ("", {"inputs": text}),
        ("embeddings", {"input": ["fine", text]}),
        ("embed", {"inputs": ["fine", text]}),
        ("embed_all", {"inputs": text}),
        ("similarity", {"inputs": {"source_sentence": "fine", "sentences": [text]}}),
        ("v2/models/fake/infer", {"inputs": [tensor(text)]}),
    ]


def kind(answer: Any) -> str | None:
    """Return what the answer calls the error; None if its protocol has no name for it."""
    error = answer.get("error") if isinstance(answer.get("error"), dict) else answer
    names = [error[key] for key in ("code", "error_type", "type") if isinstance(error.get(key), str)]
    return names[0] if names else None


@pytest.mark.parametrize("text", BLANK.values(), ids=BLANK)
def test_it_is_refused_as_an_empty_text_is(send: Send, text: str) -> None:
    for (path, body), (_, empty) in zip(bodies(text), bodies(""), strict=True):
        status, answer = send(path, body)
        wanted_status, wanted = send(path, empty)
        assert (status, kind(answer)) == (wanted_status, kind(wanted)) == (400, kind(answer)), path
        assert kind(answer) in (None, "empty_request", "Empty", "EmptyRequest"), path


def test_a_body_of_blanks_is_refused(send: Send) -> None:
    assert send("", b" \n", content_type="text/plain")[0] == 400
