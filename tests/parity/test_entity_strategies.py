"""Entities by every aggregation strategy, against transformers' own pipeline on the same checkpoint or logits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, TokenClassificationPipeline, pipeline
from transformers.pipelines.token_classification import AggregationStrategy

from archive.trial_run import TrialContext
from handlers.encoder.packing import TokenBatch
from handlers.tasks.shared.entities import STRATEGIES
from handlers.text_encoder import TextEncoder
from handlers.texts.payloads import Text
from handlers.texts.tokenization import Encoded

# transformers 5.20 scripts a part of DeBERTa with TorchScript; its pipeline warns of tokenizers without words.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Tokenizer does not support real words:UserWarning"),
]

Serve = Callable[..., TextEncoder]
Checkpoint = Callable[..., Path]

FAMILIES = ("bert", "roberta", "electra", "xlm-roberta", "albert", "deberta-v2", "modernbert")
TEXTS = [
    "Ada Lovelace wrote to Charles Babbage from Gothenburg, Donaudampfschifffahrt and Kraków.",
    "x",
    "  blanks  around  microtransplantation ",
    "don't e-mail jane.doe@example.com, it costs $3.50 (or 2,5 %)",
    "数学は美しい。 😀 Привет",
    "[MASK] unbelievably [SEP] inside",
]


class HuggingFaceContext(TrialContext):
    """A context whose requests come as Hugging Face's clients send them."""

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return {"content-type": "application/json", "content-length": "9", "explain": "False", "url_path": ""}


def ask(handler: TextEncoder, body: object) -> tuple[int, Any]:
    context = HuggingFaceContext(handler.model.folder, "parity", {})
    (answer,) = handler.handle([{"body": json.dumps(body).encode()}], context)
    return context.statuses[0], json.loads(answer)


def same(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> None:
    assert [{**entity, "score": 0} for entity in ours] == [{**entity, "score": 0} for entity in theirs]
    scores = [float(entity["score"]) for entity in theirs]
    np.testing.assert_allclose([entity["score"] for entity in ours], scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_strategy_answers_as_the_pipeline(
    serve_texts: Serve, checkpoint: Checkpoint, entity_labels: dict[int, str], family: str
) -> None:
    folder = checkpoint(family, "AutoModelForTokenClassification", id2label=entity_labels)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, model_max_length=64)  # else the pipeline cuts no text
    theirs: Any = pipeline("token-classification", model=str(folder), tokenizer=tokenizer, device="cpu")
    handler = serve_texts(folder, truncate=True, maxTokens=64)
    for strategy in STRATEGIES:
        wanted = [theirs(text, aggregation_strategy=strategy) for text in TEXTS]
        parameters = {"aggregation_strategy": strategy}
        status, answers = ask(handler, {"inputs": TEXTS, "parameters": parameters})
        assert status == 200, answers
        for ours, its in zip(answers, wanted, strict=True):
            same(ours, its)
        same(ask(handler, {"inputs": TEXTS[0], "parameters": parameters})[1], wanted[0])
        status, own = ask(handler, {"instances": TEXTS, "parameters": parameters})
        assert status == 200
        for text, ours, its in zip(TEXTS, own["predictions"], wanted, strict=True):
            assert_own_form(text, ours, its)
    assert ask(handler, {"inputs": TEXTS}) == ask(handler, {"inputs": TEXTS, "aggregation_strategy": "SIMPLE"})


def assert_own_form(text: str, ours: list[Any], theirs: list[Any]) -> None:
    """The same entities under our names, without the blanks around them."""
    assert len(ours) == len(theirs)
    for entity, its in zip(ours, theirs, strict=True):
        assert entity["label"] == its.get("entity", its.get("entity_group"))
        assert entity.get("index") == its.get("index")
        assert entity["text"] == text[entity["start"] : entity["end"]] == text[its["start"] : its["end"]].strip()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_truncated_texts_answer_as_the_pipeline_does(
    serve_texts: Serve, checkpoint: Checkpoint, entity_labels: dict[int, str], strategy: str
) -> None:
    folder = checkpoint("electra", "AutoModelForTokenClassification", id2label=entity_labels)
    text = "Donaudampfschifffahrt to Gothenburg " * 30
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, model_max_length=64)
    theirs: Any = pipeline("token-classification", model=str(folder), tokenizer=tokenizer, device="cpu")
    body = {"inputs": text, "parameters": {"aggregation_strategy": strategy, "truncate": True}}
    handler = serve_texts(folder)
    assert ask(handler, {**body, "parameters": {"aggregation_strategy": strategy}})[0] == 400
    status, ours = ask(handler, body)
    assert status == 200
    same(ours, theirs(text, aggregation_strategy=strategy))


@pytest.fixture(scope="module")
def bert_tagger(
    serve_texts: Serve, checkpoint: Checkpoint, entity_labels: dict[int, str]
) -> tuple[TextEncoder, TokenClassificationPipeline]:
    """A handler, and the pipeline of the same checkpoint without its network: tests bring logits of their own."""
    folder = checkpoint("bert", "AutoModelForTokenClassification", id2label=entity_labels)
    theirs: Any = object.__new__(TokenClassificationPipeline)
    theirs.tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs.model = type("Model", (), {"config": AutoConfig.from_pretrained(folder)})
    return serve_texts(folder), theirs


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", range(12))
def test_the_same_logits_give_the_pipelines_entities(
    bert_tagger: tuple[TextEncoder, TokenClassificationPipeline],
    entity_labels: dict[int, str],
    strategy: str,
    seed: int,
) -> None:
    """Logits of few values: neighbours of every kind, and ties."""
    handler, theirs = bert_tagger
    text = "unbelievably micro transplantation Gothenburg Kraków and Olsen 数学 ☂ it's Babbage's"
    (encoded,) = handler.tokenizer.encode([Text(text, None, False)])
    assert isinstance(encoded, Encoded)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, 3, (len(encoded.ids), len(entity_labels)), generator=generator).float()
    batch = TokenBatch.pack([encoded.ids], [encoded.type_ids], torch.device("cpu"))
    options = {"aggregation_strategy": strategy, "pipeline_form": True}
    (ours,) = handler.task.answer(logits, batch, [(encoded, options)])
    assert isinstance(ours, list)
    same(ours, from_the_pipeline(theirs, text, logits, strategy))


def from_the_pipeline(theirs: Any, text: str, logits: torch.Tensor, strategy: str) -> list[dict[str, Any]]:
    tokens = theirs.tokenizer(text, return_tensors="pt", return_special_tokens_mask=True, return_offsets_mapping=True)
    outputs = {**tokens, "logits": logits.unsqueeze(0), "sentence": text}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: list[dict[str, Any]] = theirs.postprocess([outputs], AggregationStrategy(strategy))
    return found


def test_what_is_no_strategy_is_refused_by_what_is_wanted(
    serve_texts: Serve, checkpoint: Checkpoint, entity_labels: dict[int, str]
) -> None:
    handler = serve_texts(checkpoint("electra", "AutoModelForTokenClassification", id2label=entity_labels))
    for wrong in ("best", "", 3, True, ["simple"]):
        for body in (
            {"inputs": "a", "parameters": {"aggregation_strategy": wrong}},
            {"instances": ["a"], "parameters": {"aggregation_strategy": wrong}},
        ):
            status, answer = ask(handler, body)
            assert (status, answer["type"]) == (400, "InvalidOption")
            assert answer["message"].endswith("wanted: none, simple, first, average, max")
    pair = {"text": "a", "text_pair": "b"}
    assert ask(handler, {"inputs": [pair], "parameters": {"aggregation_strategy": "max"}})[0] == 400
