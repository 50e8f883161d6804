"""Texts as sentence-transformers and transformers' own pipelines answer them, in fp32 on the same checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoModel, AutoTokenizer, pipeline

from archive.checkpoints import text_checkpoints
from handlers.text_encoder import TextEncoder

# transformers 5.20 scripts a part of DeBERTa with TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

Serve = Callable[..., TextEncoder]
Ask = Callable[..., list[Any]]
Checkpoint = Callable[..., Path]
Floats = NDArray[np.float32]

FAMILIES = ("bert", "roberta", "distilbert", "electra")
SENTENCES = [
    "Ada Lovelace wrote to Charles Babbage from London.",
    "A short one.",
    "x",
    "The ferry from Gothenburg to Kiel leaves at seven, and Mr. Olsen has not yet bought a ticket for his horse.",
    "Zürich, São Paulo, Kraków; naïve café: déjà vu!",
    "数学は美しい。 Привет, мир! 😀 مرحبا",
    "  leading and trailing   spaces\tand a tab ",
    "don't e-mail jane.doe@example.com, it costs $3.50 (or 2,5 %)",
]
PAIRS = [
    {"text": "how tall is the tower", "text_pair": "The tower is 330 metres tall, about the height of 81 storeys."},
    {"text": "how tall is the tower", "text_pair": "Bread."},
    {"text": "q", "text_pair": "a"},
]
WORDS = "the river ran past old houses and a garden where children played under tall green trees until night".split()  # noqa: SIM905


def words(count: int) -> str:
    """A text of `count` words, each one token of BERT's vocabulary."""
    return " ".join(WORDS[place * 7 % len(WORDS)] for place in range(count))


# Of 3 to 256 tokens with [CLS] and [SEP], in no order, and one long text among many short ones.
LENGTHS = [*range(1, 40, 3), 253, 200, 64, 254, 1, 127, 128, 30, *[2] * 10]
VARIED = [*SENTENCES, *(words(count) for count in LENGTHS)]


def cosines(a: Floats, b: Floats) -> Floats:
    """(N,), row by row."""
    cosine: Floats = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return cosine


def assert_same_vectors(ours: object, theirs: Floats, least_cosine: float = 0.999999) -> None:
    vectors = np.asarray(ours, np.float32)
    assert cosines(vectors, theirs).min() >= least_cosine
    np.testing.assert_allclose(vectors, theirs, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def sentences(serve_texts: Serve, minilm: Path) -> TextEncoder:
    return serve_texts(minilm)


@pytest.fixture(scope="module")
def reference(minilm: Path) -> SentenceTransformer:
    return SentenceTransformer(str(minilm), device="cpu")


@pytest.fixture(scope="module")
def varied(reference: SentenceTransformer) -> Floats:
    """What sentence-transformers makes of VARIED."""
    vectors: Floats = reference.encode(VARIED, batch_size=64)
    return vectors


def test_embeddings_are_those_of_sentence_transformers(sentences: TextEncoder, varied: Floats, ask: Ask) -> None:
    lengths = [len(sentences.tokenizer.whole.encode(text).ids) for text in VARIED]
    assert (min(lengths), max(lengths)) == (3, 256)
    assert_same_vectors(ask(sentences, VARIED), varied)


def test_embeddings_one_by_one_are_those_of_the_batch(sentences: TextEncoder, varied: Floats, ask: Ask) -> None:
    assert_same_vectors([ask(sentences, [text])[0] for text in VARIED], varied)


@pytest.mark.parametrize("budget", [256, 300, 1000])
def test_embeddings_do_not_depend_on_the_token_budget(
    serve_texts: Serve, minilm: Path, varied: Floats, ask: Ask, budget: int
) -> None:
    assert_same_vectors(ask(serve_texts(minilm, tokenBudget=budget), VARIED), varied)


def test_truncation_is_that_of_sentence_transformers(
    sentences: TextEncoder, reference: SentenceTransformer, ask: Ask
) -> None:
    texts = [words(254), words(255), words(256), words(1000), "Donaudampfschifffahrt " * 200, words(3)]
    answers = ask(sentences, texts, truncate=True)
    assert_same_vectors(answers, reference.encode(texts))
    assert answers[1] == answers[2] == pytest.approx(answers[0], abs=1e-5)


def test_embeddings_in_bf16_keep_their_direction(serve_texts: Serve, minilm: Path, varied: Floats, ask: Ask) -> None:
    answers = np.asarray(ask(serve_texts(minilm, precision="bf16"), VARIED), np.float32)
    assert cosines(answers, varied).min() >= 0.999


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "modes",
    [
        "cls",
        "max",
        "mean",
        "mean_sqrt_len_tokens",
        "weightedmean",
        "lasttoken",
        ("mean", "max"),
        ("lasttoken", "cls", "mean"),
    ],
    ids=str,
)
def test_every_pooling_is_that_of_sentence_transformers(
    serve_texts: Serve, checkpoint: Checkpoint, ask: Ask, tmp_path: Path, modes: Any, normalize: bool
) -> None:
    transformer = Transformer(str(checkpoint("distilbert", "AutoModel")), max_seq_length=32)
    ending = [Normalize()] if normalize else []
    model = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), modes), *ending], device="cpu"
    )
    model.save(str(tmp_path))
    texts = [*SENTENCES[:3], words(30), words(50)]
    answers = ask(serve_texts(tmp_path), texts, truncate=True)
    assert_same_vectors(answers, model.encode(texts))


def test_older_pooling_files_concatenate_in_the_order_of_sentence_transformers(
    serve_texts: Serve, checkpoint: Checkpoint, ask: Ask, tmp_path: Path
) -> None:
    base = checkpoint("distilbert", "AutoModel")
    SentenceTransformer(modules=[Transformer(str(base), max_seq_length=32), Pooling(32)], device="cpu").save(
        str(tmp_path)
    )
    keys = ("lasttoken", "weightedmean_tokens", "mean_tokens", "max_tokens", "cls_token")
    old = {"word_embedding_dimension": 32, **{f"pooling_mode_{key}": True for key in keys}}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(old), encoding="utf-8")
    theirs = SentenceTransformer(str(tmp_path), device="cpu").encode(SENTENCES[:4])
    assert theirs.shape == (4, 5 * 32)
    assert_same_vectors(ask(serve_texts(tmp_path), SENTENCES[:4]), theirs)


def test_lower_casing_is_that_of_sentence_transformers(
    serve_texts: Serve, checkpoint: Checkpoint, ask: Ask, tmp_path: Path
) -> None:
    base = checkpoint("roberta", "AutoModel")  # whose tokenizer tells cases apart
    SentenceTransformer(modules=[Transformer(str(base)), Pooling(32)], device="cpu").save(str(tmp_path))
    said = json.dumps({"max_seq_length": 48, "do_lower_case": True})
    (tmp_path / "sentence_bert_config.json").write_text(said, encoding="utf-8")
    model = SentenceTransformer(str(tmp_path), device="cpu")
    texts = ["THE River", "Old HOUSES"]
    assert_same_vectors(ask(serve_texts(tmp_path), texts), model.encode(texts))
    lowered = model.encode([text.lower() for text in texts])
    np.testing.assert_allclose(model.encode(texts), lowered, atol=1e-6)


@pytest.mark.parametrize("family", [*FAMILIES, "mpnet"])
def test_token_vectors_are_those_of_the_plain_model_up_to_the_longest_text(
    serve_texts: Serve, checkpoint: Checkpoint, ask: Ask, family: str
) -> None:
    folder = checkpoint(family, "AutoModel")
    handler = serve_texts(folder, "--pooling", "mean")
    limit = {"bert": 512}.get(family, 64)
    assert handler.model.settings.max_tokens == limit
    texts = [*SENTENCES[:3], words(20), words(limit * 2)]
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        tokens = [tokenizer(text, truncation=True, max_length=limit, return_tensors="pt") for text in texts]
        rows = [model(**inputs).last_hidden_state[0].mean(dim=0) for inputs in tokens]
    assert tokens[-1]["input_ids"].shape == (1, limit)
    np.testing.assert_allclose(ask(handler, texts, truncate=True), torch.stack(rows).numpy(), rtol=0, atol=2e-5)


def score_of(answers: list[dict[str, Any]]) -> dict[str, float]:
    return {answer["label"]: answer["score"] for answer in answers}


PROBLEMS: dict[str, dict[str, Any]] = {
    "softmax": {"id2label": {0: "bad", 1: "fair", 2: "good"}},
    "multi-label": {
        "id2label": {0: "toxic", 1: "rude", 2: "kind"},
        "problem_type": "multi_label_classification",
    },
    "regression": {"id2label": {0: "score"}, "problem_type": "regression"},
    "regression-of-three": {"id2label": {0: "x", 1: "y", 2: "z"}, "problem_type": "regression"},
    "one-label": {"id2label": {0: "relevant"}},
    "two-labels-unnamed": {},
}


def classifier(checkpoint: Checkpoint, family: str, problem: str) -> Path:
    return checkpoint(family, "AutoModelForSequenceClassification", **PROBLEMS[problem])


@pytest.mark.parametrize("problem", PROBLEMS)
def test_sequence_classification_scores_as_the_pipeline_does(
    serve_texts: Serve, checkpoint: Checkpoint, ask: Ask, problem: str
) -> None:
    assert_classified_as_by_the_pipeline(classifier(checkpoint, "bert", problem), serve_texts, ask)


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_sequence_classification_of_other_families(
    serve_texts: Serve, checkpoint: Checkpoint, ask: Ask, family: str
) -> None:
    assert_classified_as_by_the_pipeline(classifier(checkpoint, family, "softmax"), serve_texts, ask)


def assert_classified_as_by_the_pipeline(folder: Path, serve_texts: Serve, ask: Ask) -> None:
    inputs: list[Any] = [*SENTENCES[:4], *PAIRS]
    theirs = pipeline("text-classification", model=str(folder), tokenizer=str(folder), device="cpu", top_k=None)
    wanted: Any = theirs(inputs)
    handler = serve_texts(folder, "--task", "sequence-classification")
    batched = ask(handler, inputs, truncate=True)
    single = [ask(handler, [item], truncate=True)[0] for item in inputs]
    for reference, answers, alone in zip(wanted, batched, single, strict=True):
        assert score_of(answers) == pytest.approx(score_of(reference), abs=1e-5)
        assert score_of(alone) == pytest.approx(score_of(answers), abs=1e-5)
        scores = [answer["score"] for answer in answers]
        assert scores == sorted(scores, reverse=True)


def test_sequence_classification_takes_top_k(serve_texts: Serve, checkpoint: Checkpoint, ask: Ask) -> None:
    handler = serve_texts(classifier(checkpoint, "bert", "softmax"))
    whole, cut = ask(handler, SENTENCES), ask(handler, SENTENCES, top_k=2)
    assert [answers[:2] for answers in whole] == cut


# Tokenizers of all kinds; those of the second row count the blank before a word to the word.
TOKENIZERS = ("bert", "roberta", "distilbert", "electra", *("xlm-roberta", "albert", "deberta-v2", "modernbert"))


@pytest.mark.parametrize("family", TOKENIZERS)
def test_entities_are_those_of_the_pipeline(
    serve_texts: Serve, checkpoint: Checkpoint, ask: Ask, entity_labels: dict[int, str], family: str
) -> None:
    folder = checkpoint(family, "AutoModelForTokenClassification", id2label=entity_labels)
    theirs = pipeline(
        "token-classification",
        model=str(folder),
        tokenizer=str(folder),
        device="cpu",
        aggregation_strategy="simple",
    )
    texts = [SENTENCES[place] for place in (0, 1, 2, 4, 6)]
    handler = serve_texts(folder)
    batched = ask(handler, texts, truncate=True)
    found = 0
    for text, answers in zip(texts, batched, strict=True):
        wanted = theirs(text)
        places = [(entity["label"], entity["start"], entity["end"]) for entity in answers]
        assert places == [(entity["entity_group"], *without_blanks(text, entity)) for entity in wanted]
        assert [entity["text"] for entity in answers] == [text[start:end] for _, start, end in places]
        assert not any(entity["text"] != entity["text"].strip() for entity in answers)
        scores = [entity["score"] for entity in answers]
        assert scores == pytest.approx([float(entity["score"]) for entity in wanted], abs=1e-5)
        alone = ask(handler, [text])[0]
        assert [entity["score"] for entity in alone] == pytest.approx(scores, abs=1e-5)
        found += len(answers)
    assert found > len(texts)


def without_blanks(text: str, entity: dict[str, Any]) -> tuple[int, int]:
    """The pipeline's word has no blank before it, and its place does."""
    start, end = entity["start"], entity["end"]
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


@pytest.mark.parametrize("family", FAMILIES)
def test_fillings_are_those_of_the_pipeline(
    serve_texts: Serve, checkpoint: Checkpoint, ask: Ask, family: str
) -> None:
    folder = checkpoint(family, "AutoModelForMaskedLM")
    theirs = pipeline("fill-mask", model=str(folder), tokenizer=str(folder), device="cpu", top_k=5)
    mask = AutoTokenizer.from_pretrained(folder).mask_token
    texts = [
        f"The {mask} ran past the old houses.",
        f"Paris is the capital of {mask}",
        f"{mask} and {mask}, it's (not) {mask}: a test!",
        mask,
    ]
    handler = serve_texts(folder)
    answers = ask(handler, texts)
    for text, fillings in zip(texts, answers, strict=True):
        assert_same_fillings(fillings, theirs(text))
        assert_same_fillings(ask(handler, [text])[0], fillings)
        cut = ask(handler, [text], top_k=2)[0]
        several = text.count(mask) > 1
        assert_same_fillings(cut, [row[:2] for row in fillings] if several else fillings[:2])


def assert_same_fillings(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs)
    for mine, wanted in zip(ours, theirs, strict=True):
        if isinstance(wanted, list):
            assert_same_fillings(mine, wanted)
        else:
            assert mine == {**wanted, "score": pytest.approx(wanted["score"], abs=1e-5)}


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_answers_are_single_answers(
    serve_texts: Serve, checkpoint: Checkpoint, ask: Ask, family: str
) -> None:
    """Padding, which a random network would show at once where it leaked."""
    handler = serve_texts(checkpoint(family, "AutoModel"), "--pooling", "cls", "--normalize", tokenBudget=4096)
    texts = [words(count) for count in (1, 15, 2, 9, 14, 1)]
    single = np.asarray([ask(handler, [text])[0] for text in texts], np.float32)
    assert_same_vectors(ask(handler, texts), single)


def test_a_sentence_transformers_folder_says_its_own_maximum(minilm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(minilm, folder)
    assert text_checkpoints.read(str(folder)).max_tokens == 256
    (folder / "sentence_bert_config.json").rename(folder / "sentence_roberta_config.json")
    assert text_checkpoints.read(str(folder)).max_tokens == 256
    (folder / "sentence_roberta_config.json").unlink()
    assert text_checkpoints.read(str(folder)).max_tokens == SentenceTransformer(str(folder)).max_seq_length
