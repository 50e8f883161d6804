"""The parts of scripts/soak: known answers, excuses, the test of flat memory, gRPC by hand, the report."""

from __future__ import annotations

import importlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server.client import Client
from server.errors import ServerError
from server.http import Answer
from soak import grpc_form, known, questions
from soak.changes import Change, Changes
from soak.growth import Growth, Series, Verdict
from soak.report import Report
from soak.traffic import Failure, Tally

NOBODY = Client(Path("/nowhere"), {})


def changes(*done: Change) -> Changes:
    return Changes(NOBODY, Path("/nowhere"), 1, 0, threading.Event(), list(done))


def failure(start: float, end: float, model: str = "digits", excusable: bool = True) -> Failure:
    return Failure(start, end, model, "a form", "status 500", excusable)


@pytest.mark.parametrize(
    ("failed", "is_excused"),
    [
        (failure(9, 11), True),  # was with the worker when it was killed
        (failure(12, 13), True),  # came before the next worker was ready
        (failure(5, 9), False),
        (failure(30, 31), False),
        (failure(9, 11, "sentences"), False),
        (failure(9, 11, excusable=False), False),  # a wrong answer never is
    ],
)
def test_only_a_killed_worker_of_the_model_excuses(failed: Failure, is_excused: bool) -> None:
    assert changes(Change("kill", "digits", 10, 20)).excuses(failed) is is_excused
    assert not changes(Change("deploy", "digits", 10, 20)).excuses(failed)


def test_a_kill_that_is_under_way_excuses_too() -> None:
    under_way = changes()
    under_way.killing = Change("kill", "digits", 10, float("inf"))
    assert under_way.excuses(failure(9, 11))


def series(*values: float) -> Series:
    found = Series()
    for at, value in enumerate(values):
        found.add(float(at), value)
    return found


@pytest.mark.parametrize(
    ("values", "is_flat"),
    [
        ([100.0] * 200, True),
        ([500.0] * 100 + [599.0] * 100, True),
        ([float(at) for at in range(400)], False),  # 1 MB per sample
        ([100.0] * 200 + [201.0] * 200, True),  # all of it before half-way
        ([100.0] * 301 + [201.0] * 99, False),
        ([100.0] * 399 + [900.0], True),  # one sample is a peak, not growth
    ],
)
def test_growth_of_100_mb_from_half_way_is_not_flat(values: list[float], is_flat: bool) -> None:
    found = series(*values).growth(0, len(values) - 1)
    assert found is not None
    assert Verdict("x", *found).is_flat is is_flat


def test_what_was_not_there_at_half_way_is_not_judged() -> None:
    late = Series([90.0, 95.0, 100.0], [1.0, 1.0, 900.0])
    memory = Growth(NOBODY, list, [], {"late": late}, last=100.0)
    assert memory.verdicts(0) == []


def test_thinning_keeps_every_second_value() -> None:
    found = series(*range(10))
    found.thin()
    assert found.values == [0, 2, 4, 6, 8]


def echo(message: questions.Message) -> Answer:
    """Answers with the text's own vector."""
    text = json.loads(message.body)
    return Answer(200, {}, json.dumps([vector(item) for item in text]).encode())


def vector(text: str) -> list[float]:
    return [float(value) for value in np.random.default_rng(len(text)).normal(size=8)]


def write(which: Any) -> questions.Message:
    return questions.Message("/x", json.dumps(["t" * (index + 1) for index in which]).encode())


FORM = questions.Form("texts", "m", 2, write, lambda body: np.asarray(json.loads(body), np.float64))


def test_an_answer_is_told_from_another_requests() -> None:
    answers = known.ask_all([FORM], 6, {}, echo)
    right = echo(write([1, 4])).body
    assert answers.problem(FORM, [1, 4], right) is None
    assert answers.problem(FORM, [1, 3], right) == "the answer to another request"
    assert answers.problem(FORM, [4, 1], right) == "another answer than when it was asked alone"
    assert answers.problem(FORM, [1], right) == "shape (2, 8), not (1, 8)"
    assert answers.problem(FORM, [1, 4], b"{") == "an answer of another form (JSONDecodeError)"
    assert answers.problem(FORM, [1, 4], b"[[NaN,0,0,0,0,0,0,0],[0,0,0,0,0,0,0,0]]")


def test_a_bad_request_that_is_answered_is_found_at_once() -> None:
    with pytest.raises(ServerError, match="broken was answered 200"):
        known.ask_all([FORM], 2, {"broken": ("m", write([0]))}, echo)


def test_inputs_whose_answers_are_alike_are_asked_once() -> None:
    assert known.distinct(np.array([[0.0, 0], [0.01, 0], [1, 0], [1, 0.1], [5, 5]])) == [0, 2, 4]


def test_questions_are_the_same_each_time_and_unlike_each_other() -> None:
    assert questions.pictures(6) == questions.pictures(6)
    assert len(set(questions.pictures(20))) == 20
    assert len(set(questions.texts())) == questions.COUNT


def test_grpc_by_hand_is_what_protoc_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="needs the test extra's grpcio-tools")
    protos = Path(__file__).parents[1] / "e2e" / "protos"
    assert protoc.main(["protoc", f"-I{protos}", f"--python_out={tmp_path}", str(protos / "inference.proto")]) == 0
    (tmp_path / "inference_pb2.py").rename(tmp_path / "soak_inference_pb2.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    made: Any = importlib.import_module("soak_inference_pb2")
    sent = made.PredictionsRequest.FromString(grpc_form.request("digits", "data", b"x" * 5000))
    assert (sent.model_name, dict(sent.input)) == ("digits", {"data": b"x" * 5000})
    answer = made.PredictionResponse(prediction=b"y" * 300).SerializeToString()
    assert grpc_form.prediction(answer) == b"y" * 300


def test_the_report_names_what_was_not_right(tmp_path: Path) -> None:
    tally = Tally()
    tally.add_right("a form", 0.1)
    tally.add_failure(failure(9, 11))
    tally.add_failure(failure(30, 31))
    memory = Growth(NOBODY, list, [], {"java": series(*range(0, 1000, 2))}, last=499.0)
    done = changes(Change("kill", "digits", 10, 20), Change("deploy", "digits", 20, 21, "ServerError: no"))
    report = Report(tmp_path / "soak", 500, {"commit": "abc", "cores": 2}, {}, 6, 40)
    report.fill(tally, done, memory, 0, 500, is_over=True)
    report.write()
    content = json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))
    assert not content["passed"]
    assert content["requests"]["excused"] == 1
    assert len(content["failures"]) == 1
    assert content["problems"][0] == "1 x a form: status 500"
    assert "deploy of digits failed: ServerError: no" in content["problems"]
    assert any(problem.startswith("memory of java grew") for problem in content["problems"])
    assert "| java |" in (tmp_path / "soak.md").read_text(encoding="utf-8")
    assert report.show() == 1
