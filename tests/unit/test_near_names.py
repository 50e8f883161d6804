"""A name that is spelt almost right is answered with the right one, wherever a person types it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive import command_line
from archive.near_options import Parser
from handlers import settings
from handlers.near_names import nearest
from handlers.settings import SettingsError, TextSettings

if TYPE_CHECKING:
    from tests.unit.conftest import Send


@pytest.mark.parametrize(
    ("name", "meant"),
    [("normalise", "normalize"), ("Max-Tokens", "max_tokens"), ("maxToken", "max_tokens"), ("zzz", None), ("", None)],
)
def test_the_nearest_name(name: str, meant: str | None) -> None:
    assert nearest(name, ["normalize", "max_tokens", "top_k"]) == meant


@given(st.text(), st.lists(st.text(min_size=1)))
def test_any_name_is_taken(name: str, known: list[str]) -> None:
    assert nearest(name, known) in (None, *known)


@pytest.mark.parametrize("given_option", ["--normalise", "--normalise=1", "--Normalize"])
def test_an_option_of_a_command(given_option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command_line.parse(["text-encoder", "--weights", "x", given_option])
    assert "did you mean --normalize?" in capsys.readouterr().err


def test_another_option_is_refused_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command_line.parse(["text-encoder", "--weights", "x", "--zzz"])
    assert "unrecognized arguments: --zzz" in capsys.readouterr().err


def test_words_that_are_no_options_pass() -> None:
    parser = Parser()
    parser.add_argument("--text")
    parser.add_argument("words", nargs="*")
    assert parser.parse_args(["--text", "a", "--", "--txet"]).words == ["--txet"]


def test_a_key_of_the_settings() -> None:
    with pytest.raises(SettingsError, match="unknown maxToken; did you mean 'maxTokens'\\?; known: "):
        settings.read(TextSettings, {"maxToken": 5})


@pytest.mark.parametrize(
    ("path", "body", "meant"),
    [
        ("", {"instances": ["a"], "parameters": {"normalise": True}}, "'normalize'"),
        ("", {"instances": ["a"], "parameter": {}}, "'parameters'"),
        ("embed", {"inputs": "a", "truncated": True}, "'truncate'"),
        ("embeddings", {"input": "a", "dimension": 3}, "'dimensions'"),
        ("v2/models/fake/infer", {"inputs": [], "output": []}, "'outputs'"),
    ],
)
def test_a_field_of_a_request(send: Send, path: str, body: object, meant: str) -> None:
    status, answer = send(path, body)
    assert status in (400, 422)
    assert f"did you mean {meant}?" in _message(answer)


def test_a_field_that_is_missing_and_came_almost(send: Send) -> None:
    status, answer = send("embeddings", {"inputs": "a"})
    assert (status, "holds no \"input\", and 'inputs' came" in _message(answer)) == (400, True)


def _message(answer: Any) -> str:
    error = answer.get("error", answer.get("message"))
    return str(error["message"] if isinstance(error, dict) else error)
