"""Candidate labels: the forms in which they come, the shapes of answers, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from huggingface_hub import ZeroShotClassificationOutputElement

from handlers.protocol import zero_shot
from handlers.protocol.errors import PayloadTooLarge
from handlers.text_encoder import TextEncoder
from handlers.texts.truncation import kept_indices

if TYPE_CHECKING:
    from tests.unit.conftest import Answers, FakeContext, Send

NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}
LABELS = ["red", "green", "blue"]
TOO_MANY = [f"label {number}" for number in range(33)]


@pytest.fixture(scope="module")
def nli(tiny_encoder: Callable[..., TextEncoder]) -> TextEncoder:
    return tiny_encoder("sequence-classification", id2label=NLI)


@pytest.fixture(scope="module")
def first(send: Send, nli: TextEncoder) -> Any:
    """The answer to "a" with LABELS."""
    status, answer = send("", {"instances": ["a"], "parameters": {"candidate_labels": LABELS}}, nli)
    assert status == 200
    return answer["predictions"][0]


@pytest.fixture(scope="module")
def wanted(first: Any) -> Any:
    """What equals it. Another batch may round the last digit of a score otherwise."""
    return {**first, "scores": pytest.approx(first["scores"], abs=1e-6)}


def test_an_answer_has_transformers_keys(first: Any) -> None:
    assert list(first) == ["sequence", "labels", "scores"]
    assert (first["sequence"], sorted(first["labels"])) == ("a", sorted(LABELS))
    assert sum(first["scores"]) == pytest.approx(1, abs=1e-6)
    assert first["scores"] == sorted(first["scores"], reverse=True)


@pytest.mark.parametrize("labels", ["red, green,blue", '["red", "green", "blue"]'])
def test_labels_in_a_header(send: Send, nli: TextEncoder, wanted: Any, labels: str) -> None:
    assert send("", "a", nli, x_candidate_labels=labels) == (200, wanted)
    assert send("", ["a", "a"], nli, x_candidate_labels=labels) == (200, [wanted, wanted])


def test_labels_in_a_form_and_by_grpc(
    context_for: Callable[..., FakeContext], ask: Callable[..., Answers], nli: TextEncoder, wanted: Any
) -> None:
    rest = {"content-length": "9", "explain": "False", "url_path": "", "content-type": "multipart/form-data"}
    row = {"text": b"a", "candidate_labels": b"red,green,blue"}
    assert ask(nli, [row], [rest]) == [(200, wanted)]
    row = {"data": b"a", "candidate_labels": b"red,green,blue", "multi_label": b"false"}
    assert ask(nli, [row]) == [(200, wanted)]


def test_hugging_faces_client_reads_one_text_as_a_list_of_labels(send: Send, nli: TextEncoder, wanted: Any) -> None:
    sent = {"candidate_labels": LABELS, "multi_label": False, "hypothesis_template": None}
    status, answer = send("", {"inputs": "a", "parameters": sent}, nli)
    assert (status, [item["label"] for item in answer]) == (200, wanted["labels"])
    assert [item["score"] for item in answer] == wanted["scores"]
    parsed = ZeroShotClassificationOutputElement.parse_obj_as_list(answer)
    assert [(item.label, item.score) for item in parsed] == [(item["label"], item["score"]) for item in answer]
    assert send("", {"inputs": ["a"], "parameters": sent}, nli) == (200, [wanted])


def test_kserve_v2_has_them_as_tensors(send: Send, nli: TextEncoder, first: Any) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}
    body = {"inputs": [tensor], "parameters": {"candidate_labels": "red,green,blue"}}
    status, answer = send("v2/models/fake/infer", body, nli)
    assert status == 200
    scores, labels = answer["outputs"]
    assert scores["shape"] == labels["shape"] == [2, 3]
    assert labels["data"][:3] == first["labels"]
    np.testing.assert_allclose(scores["data"][:3], first["scores"], rtol=1e-6)


def test_neighbours_are_answered_as_always(
    ask: Callable[..., Answers], send: Send, nli: TextEncoder, wanted: Any
) -> None:
    json = {"content-length": "9", "explain": "False", "url_path": "", "content-type": "application/json"}
    asked = {**json, "x-candidate-labels": "red,green,blue"}
    bad = {**json, "x-candidate-labels": ","}
    answers = ask(nli, [{"body": text} for text in ("a", "b", "b", "a")], [json, bad, json, asked])
    assert [status for status, _ in answers] == [200, 400, 200, 200]
    assert answers[3][1] == wanted
    _, alone = send("", "a", nli)
    assert [item["label"] for item in answers[0][1]] == [item["label"] for item in alone]


def test_an_error_names_the_text_and_the_label(send: Send, nli: TextEncoder) -> None:
    body = {"instances": ["a", "b"], "parameters": {"candidate_labels": ["red", "word " * 40]}}
    status, answer = send("", body, nli)
    assert (status, answer["type"]) == (400, "InputTooLong")
    assert answer["message"].startswith("text 1 of 2 with label 2 of 2: ")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"candidate_labels": []}, "there is no label"),
    ({"candidate_labels": ""}, "there is no label"),
    ({"candidate_labels": " , "}, "there is no label"),
    ({"candidate_labels": ["a", ""]}, "label 2 of 2 is empty"),
    ({"candidate_labels": ["a", 5]}, "label 2 of 2 is a number"),
    ({"candidate_labels": '["a", 5]'}, "label 2 of 2 is a number"),
    ({"candidate_labels": '["a"'}, "begins as a list in JSON"),
    ({"candidate_labels": {"a": 1}}, "an object came"),
    ({"candidate_labels": 5}, "a number came"),
    ({"candidate_labels": LABELS, "hypothesis_template": "no place"}, "one {} where the label goes"),
    ({"candidate_labels": LABELS, "hypothesis_template": "{} and {}"}, "one {} where the label goes"),
    ({"candidate_labels": LABELS, "hypothesis_template": "{0.__class__} {}"}, "no other braces"),
    ({"candidate_labels": LABELS, "hypothesis_template": "{:>999999999}"}, "one {} where the label goes"),
    ({"candidate_labels": LABELS, "hypothesis_template": "{}" + "x" * 999}, "1001 characters"),
    ({"candidate_labels": LABELS, "hypothesis_template": 5}, "a number came"),
    ({"candidate_labels": LABELS, "multi_label": "perhaps"}, "true or false"),
    ({"hypothesis_template": "It is {}."}, "beside candidate_labels only"),
    ({"multi_label": True}, "beside candidate_labels only"),
    ({"candidate_labels": LABELS, "top_k": 2}, "top_k has no meaning"),
    ({"candidate_labels": LABELS, "raw_scores": True}, "raw_scores has no meaning"),
    ({"candidate_label": LABELS}, "unknown parameter 'candidate_label'"),
]


@pytest.mark.parametrize(("parameters", "expected"), REFUSED)
def test_refused_with_what_is_wanted(send: Send, nli: TextEncoder, parameters: dict[str, Any], expected: str) -> None:
    status, answer = send("", {"instances": ["a"], "parameters": parameters}, nli)
    assert (status, answer["type"]) == (400, "InvalidOption")
    assert expected in answer["message"]
    if "unknown" not in expected:
        assert send("", {"inputs": "a", "parameters": parameters}, nli)[0] == 400


def test_too_many_pairs_are_refused_before_they_are_made(send: Send, nli: TextEncoder) -> None:
    body = {"instances": ["a", "b"], "parameters": {"candidate_labels": TOO_MANY}}
    status, answer = send("", body, nli)
    assert (status, answer["type"]) == (413, PayloadTooLarge.__name__)
    assert "2 texts with 33 labels each are 66 inputs; at most 64" in answer["message"]
    body = {"instances": ["a", "b"], "parameters": {"candidate_labels": TOO_MANY[:32]}}
    assert send("", body, nli)[0] == 200


@pytest.mark.parametrize("value", [{"text": "a", "text_pair": "b"}, 5, None, ["a"]])
def test_texts_alone_have_labels(send: Send, nli: TextEncoder, value: object) -> None:
    body = {"instances": ["a", value], "parameters": {"candidate_labels": LABELS}}
    status, answer = send("", body, nli)
    assert (status, answer["type"]) == (400, "InvalidInput")
    assert "input 2 is " in answer["message"]


def test_paths_of_other_protocols_have_no_candidate_labels(send: Send, nli: TextEncoder) -> None:
    status, answer = send("predict", {"inputs": "a"}, nli, x_candidate_labels="a,b")
    assert status == 422
    assert "no meaning on this path" in answer["error"]
    assert send("predict", {"inputs": "a"}, nli, x_top_k="1")[0] == 200


@pytest.mark.parametrize(
    ("labels", "index"),
    [
        (["contradiction", "neutral", "entailment"], 2),
        (["Entailment", "not_entailment"], 0),
        (["entailment"], None),
        (["entailment", "entailed"], None),
        (["POSITIVE", "NEGATIVE"], None),
        ([], None),
    ],
)
def test_models_for_nli_are_known_by_one_label(labels: Sequence[str], index: int | None) -> None:
    assert zero_shot.entailment(labels) == index
    assert bool(zero_shot.options(labels)) == (index is not None)


def test_other_classifiers_refuse_the_option_by_name(send: Send, tiny_encoder: Callable[..., TextEncoder]) -> None:
    handler = tiny_encoder("sequence-classification", num_labels=3)
    body = {"inputs": "a", "parameters": {"candidate_labels": LABELS}}
    status, answer = send("", body, handler)
    assert status == 400
    assert "candidate_labels" in answer["message"]
    assert send("", "a", handler, x_candidate_labels="a,b")[0] == 400


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_fail_their_request_alone(
    ask: Callable[..., Answers], nli: TextEncoder, wanted: Any, monkeypatch: pytest.MonkeyPatch, broken: float
) -> None:
    json = {"content-length": "9", "explain": "False", "url_path": "", "content-type": "application/json"}
    asked = {**json, "x-candidate-labels": "red,green,blue"}
    run = nli.run

    def breaking(encoded: Sequence[Any]) -> Any:
        outputs, batch = run(encoded)
        outputs = outputs.clone()
        outputs[[index for index, item in enumerate(encoded) if item.text == "b"][:1], 0] = broken
        return outputs, batch

    monkeypatch.setattr(nli, "run", breaking)
    answers = ask(nli, [{"body": "a"}, {"body": "b"}], [asked, asked])
    assert answers[0] == (200, wanted)
    assert answers[1][0] == 500


@pytest.mark.parametrize(
    ("most", "from_left", "kept"),
    [
        (8, False, [0, 1, 2, 3, 5, 6, 7, 8]),
        (7, True, [0, 3, 4, 5, 6, 7, 8]),
        (6, False, [0, 1, 5, 6, 7, 8]),
        (5, False, None),
    ],
)
def test_only_the_text_is_cut(most: int, from_left: bool, kept: list[int] | None) -> None:
    sequences = [None, 0, 0, 0, 0, None, 1, 1, None]  # 4 tokens of the text, 2 of the hypothesis
    assert kept_indices(sequences, most, from_left, only_first=True) == kept
