"""Candidate labels, against transformers' ZeroShotClassificationPipeline on the same checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, pipeline

from archive.trial_run import TrialContext
from handlers.text_encoder import TextEncoder

Serve = Callable[..., TextEncoder]
Checkpoint = Callable[..., Path]

TEXTS = [
    "Ada Lovelace wrote to Charles Babbage from London.",
    "x",
    "The ferry leaves at seven, and Mr. Olsen has not yet bought a ticket for his horse.",
]
LABELS = ["travel", "science & letters", "naïve café", "数学"]
ORDERS = {
    "entailment last": ["contradiction", "neutral", "entailment"],
    "entailment first": ["ENTAILMENT", "NEUTRAL", "CONTRADICTION"],
    "entailment in the middle": ["contradiction", "entailment", "neutral"],
    "two labels": ["entailment", "not_entailment"],
}


class Context(TrialContext):
    """A context whose requests come as JSON over HTTP."""

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return {"content-type": "application/json", "content-length": "9", "explain": "False", "url_path": ""}


def ask(handler: TextEncoder, body: object) -> tuple[int, Any]:
    context = Context(handler.model.folder, "parity", {})
    (answer,) = handler.handle([{"body": json.dumps(body).encode()}], context)
    return context.statuses[0], json.loads(answer)


def nli(checkpoint: Checkpoint, family: str, order: str) -> Path:
    labels = dict(enumerate(ORDERS[order]))
    names = {label: index for index, label in labels.items()}
    return checkpoint(family, "AutoModelForSequenceClassification", id2label=labels, label2id=names)


def pipeline_of(folder: Path, **options: Any) -> Any:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, model_max_length=64)
    return pipeline("zero-shot-classification", model=str(folder), tokenizer=tokenizer, device="cpu", **options)


def same(ours: Any, theirs: Any) -> None:
    assert ours.keys() == theirs.keys() == {"sequence", "labels", "scores"}
    assert (ours["sequence"], ours["labels"]) == (theirs["sequence"], theirs["labels"])
    np.testing.assert_allclose(ours["scores"], theirs["scores"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "order"),
    [*(("electra", order) for order in ORDERS), ("bert", "entailment last"), ("roberta", "entailment in the middle")],
)
def test_labels_are_scored_as_by_the_pipeline(
    serve_texts: Serve, checkpoint: Checkpoint, family: str, order: str
) -> None:
    folder = nli(checkpoint, family, order)
    handler, theirs = serve_texts(folder, truncate=True, maxTokens=64), pipeline_of(folder)
    for options in (
        {"candidate_labels": LABELS},
        {"candidate_labels": LABELS, "multi_label": True},
        {"candidate_labels": LABELS, "hypothesis_template": "Is it {}, or not?"},
        {"candidate_labels": LABELS[:1]},
        {"candidate_labels": "travel, letters,,science"},
    ):
        wanted = theirs(TEXTS, **options)
        status, ours = ask(handler, {"instances": TEXTS, "parameters": options})
        assert status == 200, ours
        for mine, its in zip(ours["predictions"], wanted, strict=True):
            same(mine, its)
        status, listed = ask(handler, {"inputs": TEXTS, "parameters": options})
        assert (status, listed) == (200, ours["predictions"])
        status, one = ask(handler, {"inputs": TEXTS[0], "parameters": options})
        pairs = zip(wanted[0]["labels"], wanted[0]["scores"], strict=True)
        assert (status, [item["label"] for item in one]) == (200, wanted[0]["labels"])
        assert one == [{"label": label, "score": pytest.approx(score, abs=1e-5)} for label, score in pairs]


def test_a_text_that_is_too_long_is_cut_and_its_labels_are_not(serve_texts: Serve, checkpoint: Checkpoint) -> None:
    folder = nli(checkpoint, "electra", "entailment last")
    handler, theirs = serve_texts(folder), pipeline_of(folder)
    text = "the river ran past old houses " * 40
    options = {"candidate_labels": ["a " * 40, "garden"], "multi_label": True}
    assert ask(handler, {"instances": [text], "parameters": options})[1]["type"] == "InputTooLong"
    status, ours = ask(handler, {"instances": [text], "parameters": {**options, "truncate": True}})
    assert status == 200
    same(ours["predictions"][0], theirs(text, **options))
    endless = {"candidate_labels": ["a " * 70], "truncate": True}
    status, error = ask(handler, {"instances": [text], "parameters": endless})
    assert (status, error["type"]) == (400, "InputTooLong")
    assert "the hypothesis leaves no room" in error["message"]
