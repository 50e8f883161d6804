"""scripts/predict: what it prints, what it refuses, its exit status."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import predict
import pytest

from handlers.hosts.contents import CONFIG
from tests.made_archives import model_files, write_mar

SAMPLES = Path(__file__).parents[2] / "archive" / "digits" / "samples"
SEVEN = str(SAMPLES / "seven.png")
HANDLER = {"precision": "fp32", "engine": "torch_eager", "device": "cpu", "cpuThreads": 1}
PREPROCESS = {"size": 32, "resize": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def digits_mar(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    files = model_files(digits_folder, "image-classifier", {"handler": {**HANDLER, "preprocess": PREPROCESS}})
    return str(write_mar(tmp_path_factory.mktemp("mars") / "digits.mar", files))


@pytest.fixture(scope="module")
def sentences_mar(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    files = model_files(minilm_folder, "text-encoder", {"handler": {**HANDLER, "maxTokens": 32}})
    return str(write_mar(tmp_path_factory.mktemp("mars") / "sentences.mar", files, "text-encoder"))


@pytest.fixture
def ask(capfd: pytest.CaptureFixture[str]) -> Ask:
    """ask(*arguments) -> exit status, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            status = predict.main(list(arguments))
        except SystemExit as stopped:
            status = int(str(stopped.code))
        return status, *capfd.readouterr()

    return call


def test_a_line_per_image(ask: Ask, digits_mar: str) -> None:
    status, printed, said = ask(digits_mar, SEVEN, "--top", "2", str(SAMPLES / "three.png"))
    assert status == 0
    seven, three = printed.splitlines()
    assert seven.startswith(f"{SEVEN}: 7 0.98")
    assert ": 3 0." in three
    assert "loaded in" in said


def test_json_and_an_input_without_an_answer(ask: Ask, digits_mar: str, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    status, printed, _ = ask("--json", digits_mar, SEVEN, str(tmp_path / "junk"), "--top", "1")
    good, bad = map(json.loads, printed.splitlines())
    assert status == 1
    assert (good["input"], good["answer"][0]["label"]) == (SEVEN, "7")
    assert (bad["input"], bad["error"]["code"]) == (str(tmp_path / "junk"), 415)


def test_texts(ask: Ask, sentences_mar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("One.\n\nTwo.\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Three.")))
    status, printed, _ = ask(sentences_mar, "--lines", str(tmp_path / "text"), "-", "--text", "Four.", "--json")
    assert status == 0
    assert [json.loads(line)["input"] for line in printed.splitlines()] == ["One.", "Two.", "Three.", "Four."]
    status, printed, _ = ask(sentences_mar, str(tmp_path / "text"), "--option", "normalize=true")
    assert printed.startswith(f"{tmp_path / 'text'}: 384 numbers of length 1.0000: ")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "no input came"),
        (["missing.png"], 2, "--text"),
        ([SEVEN, "--top", "0"], 2, "1 or more"),
        ([SEVEN, "--option", "top_k"], 2, "NAME=VALUE"),
        ([SEVEN, "--top", "11"], 1, "whole number from 1 to 10"),
        ([SEVEN, "--option", "colour=red"], 1, "unknown parameter"),
        (["--text", "a"], 1, "takes images"),
        ([SEVEN, "--device", "tpu"], 1, "wanted"),
        ([SEVEN, "--digest", "sha256:0"], 1, "content digest"),
    ],
)
def test_what_is_refused(ask: Ask, digits_mar: str, arguments: list[str], status: int, message: str) -> None:
    got, printed, said = ask(digits_mar, *arguments)
    assert (got, printed) == (status, "")
    assert message in said
    assert "Traceback" not in said


def test_no_archive(ask: Ask, tmp_path: Path) -> None:
    assert ask(str(tmp_path / "none.mar"), SEVEN)[0] == 2
    status, _, said = ask(SEVEN, SEVEN)
    assert (status, "no model archive" in said) == (1, True)


def test_other_handlers_are_refused_taken_or_run(ask: Ask, digits_folder: Path, tmp_path: Path) -> None:
    files: Any = model_files(digits_folder, "image-classifier", {"handler": {**HANDLER, "preprocess": PREPROCESS}})
    files["handlers/tasks/shared/scores.py"] += b"\nprint('the carried handlers run')\n"
    mar = str(write_mar(tmp_path / "digits.mar", files, extra={CONFIG: files[CONFIG] + b"# edited\n"}))
    status, _, said = ask(mar, SEVEN)
    assert (status, "--edited-settings" in said) == (1, True)
    status, _, said = ask(mar, SEVEN, "--edited-settings")
    assert (status, "--other-version" in said) == (1, True)
    status, printed, _ = ask(mar, SEVEN, "--edited-settings", "--other-version")
    assert (status, printed.startswith(f"{SEVEN}: 7")) == (0, True)
    status, printed, said = ask(mar, "--carried-code", SEVEN, "--edited-settings", "--top", "1")
    assert status == 0, said
    assert printed.splitlines()[0] == "the carried handlers run"
    assert printed.splitlines()[1].startswith(f"{SEVEN}: 7 0.98")


def test_answers_of_other_tasks_in_words() -> None:
    entity = {"label": "PER", "score": 0.99, "text": "Ada", "start": 0, "end": 3}
    assert predict.for_people([entity]) == "PER 'Ada' 0.9900"
    assert predict.for_people([]) == "nothing found"
    assert predict.for_people([[{"token_str": "is", "score": 0.5}], [{"token_str": "was", "score": 0.25}]]) == (
        "\n  is 0.5000\n  was 0.2500"
    )
