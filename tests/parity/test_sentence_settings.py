"""Settings of sentence-transformers' side files, against sentence-transformers' own answers on the same folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from archive.checkpoints import text_checkpoints
from archive.checkpoints.errors import CheckpointError
from handlers.text_encoder import TextEncoder

Serve = Callable[..., TextEncoder]
Ask = Callable[..., list[Any]]
Checkpoint = Callable[..., Path]
Make = Callable[..., Path]

TEXTS = [
    "Ada Lovelace wrote to Charles Babbage from London.",
    "ΟΔΟΣ, İstanbul and STRASSE: capitals everywhere.",
    "The ferry from Gothenburg to Kiel leaves at seven, and Mr. Olsen has not yet bought a ticket for his horse.",
    "Zürich, São Paulo, Kraków; naïve café: déjà vu! " * 3,
    "x",
]
PAIRS = [("how tall is the tower", "The tower is 330 metres tall."), ("q", "Bread."), ("a", TEXTS[2])]


def write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Make:
    """folder(**content of sentence_bert_config.json) -> a small sentence-transformers folder of one's own."""

    def make(**settings: object) -> Path:
        path = Path(shutil.copytree(checkpoint("distilbert", "AutoModel"), tmp_path / "sentences"))
        names = ("Transformer", "Pooling")
        modules = [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{name}" if i else "",
                "type": f"sentence_transformers.models.{name}",
            }
            for i, name in enumerate(names)
        ]
        write(path / "modules.json", modules)
        write(path / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
        write(path / "sentence_bert_config.json", settings)
        return path

    return make


def edit(path: Path, **changes: object) -> None:
    write(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


USED: dict[str, Mapping[str, Any]] = {
    "no special tokens": {"processing_kwargs": {"text": {"add_special_tokens": False}}},
    "no special tokens in common": {"processing_kwargs": {"common": {"add_special_tokens": False}}},
    "a shorter call": {"max_seq_length": 40, "processing_kwargs": {"text": {"max_length": 9}}},
    "a longer call": {"max_seq_length": 8, "processing_kwargs": {"text": {"max_length": 20}}},
    "the tokenizer's maximum": {"max_seq_length": 40, "tokenizer_args": {"model_max_length": 12}},
    "the same by its newer name": {"processor_kwargs": {"model_max_length": 12}},
    "a maximum": {"max_seq_length": 10},
    "cased": {"tokenizer_args": {"do_lower_case": False}},
    "lower case": {"do_lower_case": True, "tokenizer_args": {"do_lower_case": False}},
    "cut at the left": {"max_seq_length": 8, "tokenizer_args": {"truncation_side": "left"}},
    "what changes nothing": {
        "model_args": {"dtype": "float32", "attn_implementation": "eager"},
        "config_args": {"use_cache": False},
        "unpad_inputs": False,
        "query_length": None,
        "processing_kwargs": {"text": {"padding": "longest", "truncation": True}, "image": {"size": 3}},
    },
}


@pytest.mark.parametrize("case", USED)
def test_what_is_used_gives_sentence_transformers_answers(
    folder: Make, serve_texts: Serve, ask: Ask, case: str
) -> None:
    path = folder(**USED[case])
    theirs = SentenceTransformer(str(path), device="cpu").encode(TEXTS)
    ours = np.asarray(ask(serve_texts(path), TEXTS, truncate=True), np.float32)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
    plain = SentenceTransformer(str(folder_without(path)), device="cpu").encode(TEXTS)
    assert (np.abs(plain - theirs).max() < 1e-5) == (case == "what changes nothing")  # the setting does something


def folder_without(path: Path) -> Path:
    copy = Path(shutil.copytree(path, path.with_name("plain")))
    (copy / "sentence_bert_config.json").write_text("{}", encoding="utf-8")
    return copy


REFUSED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "an unknown key": ("says sing, which is not known", {"sing": True}),
    "an unknown call": (
        "says processing_kwargs.text.sing, which is not known",
        {"processing_kwargs": {"text": {"sing": 1}}},
    ),
    "another task": ("transformer_task: 'fill-mask'", {"transformer_task": "fill-mask"}),
    "chat": ("modality_config", {"modality_config": {"message": {"method": "forward", "method_output_name": "x"}}}),
    "query expansion": ("query_expansion", {"query_expansion": {"strategy": "fixed", "length": 32}}),
    "another tokenizer": ("tokenizer_name_or_path", {"tokenizer_name_or_path": "../elsewhere"}),
    "an unknown argument of the model": ("model_args.num_labels", {"model_args": {"num_labels": 3}}),
    "an unknown argument of the config": ("config_args.hidden_act", {"config_args": {"hidden_act": "relu"}}),
    "a length that is none": ("max_seq_length: '128'", {"max_seq_length": "128"}),
    "an object that is none": ("processing_kwargs: [1]; wanted: an object", {"processing_kwargs": [1]}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_served_is_refused_by_name(folder: Make, case: str) -> None:
    expected, settings = REFUSED[case]
    with pytest.raises(CheckpointError, match=r"sentence_bert_config\.json says") as refused:
        text_checkpoints.read(str(folder(**settings)))
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        ("config_sentence_transformers.json", {"truncate_dim": "16"}, "truncate_dim: '16'"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type: 'SparseEncoder'"),
        ("config_sentence_transformers.json", {"sing": 1}, "says sing, which is not known"),
        ("1_Pooling/config.json", {"include_prompt": "no"}, "include_prompt: 'no'"),
        ("1_Pooling/config.json", {"learned": True}, "says learned, which is not known"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "the pooling config is not served"),
        ("tokenizer_config.json", {"split_special_tokens": True}, "split_special_tokens"),
    ],
)
def test_other_files(folder: Make, file: str, changes: dict[str, object], expected: str) -> None:
    path = folder()
    if not (path / file).is_file():
        write(path / file, {"prompts": {"query": "q: "}, "default_prompt_name": None, "similarity_fn_name": "dot"})
        assert text_checkpoints.read(str(path)).task == "embeddings"
    edit(path / file, **changes)
    with pytest.raises(CheckpointError) as refused:
        text_checkpoints.read(str(path))
    assert expected in str(refused.value)


def test_pooling_that_names_no_mode_is_the_mean(folder: Make, serve_texts: Serve, ask: Ask) -> None:
    path = folder()
    write(path / "1_Pooling" / "config.json", {"embedding_dimension": 32, "pooling_mode_mean_tokens": False})
    theirs = SentenceTransformer(str(path), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(ask(serve_texts(path), TEXTS, truncate=True), theirs, rtol=0, atol=2e-5)


def test_a_folder_that_sentence_transformers_saved_itself(
    folder: Make, serve_texts: Serve, ask: Ask, tmp_path: Path
) -> None:
    model = SentenceTransformer(str(folder(max_seq_length=20)), device="cpu")
    model.save_pretrained(str(tmp_path / "saved"))
    answers = ask(serve_texts(tmp_path / "saved"), TEXTS, truncate=True)
    np.testing.assert_allclose(answers, model.encode(TEXTS), rtol=0, atol=2e-5)


ACTIVATIONS = ("Sigmoid", "Identity", None)


@pytest.mark.parametrize("modules", [True, False], ids=["as 6 saves it", "as 4 and 5 saved it"])
@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_cross_encoder_scores_as_its_own_predict(
    checkpoint: Checkpoint, serve_texts: Serve, ask: Ask, tmp_path: Path, activation: str, labels: int, modules: bool
) -> None:
    import torch

    names = {index: f"label {index}" for index in range(labels)}
    plain = checkpoint("distilbert", "AutoModelForSequenceClassification", id2label=names)
    chosen = {} if activation is None else {"activation_fn": getattr(torch.nn, activation)()}
    model = CrossEncoder(str(plain), device="cpu", **chosen)
    path = tmp_path / "reranker"
    if modules:
        model.save_pretrained(str(path))
        assert (path / "modules.json").is_file()
    else:
        shutil.copytree(plain, path)
        name = f"torch.nn.modules.{'linear' if activation == 'Identity' else 'activation'}.{activation}"
        if activation:
            edit(path / "config.json", sentence_transformers={"activation_fn": name, "version": "5.1.0"})
        elif labels > 1:
            return  # a plain classifier, which answers as transformers' pipeline does
    wanted = np.asarray(model.predict(PAIRS)).reshape(len(PAIRS), labels)
    for options in ((), ("--task", "sequence-classification")):
        handler = serve_texts(path, *options)
        answers = ask(handler, [{"text": a, "text_pair": b} for a, b in PAIRS], truncate=True)
        scores = [
            [{row["label"]: row["score"] for row in answer}[names[i]] for i in range(labels)] for answer in answers
        ]
        np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-5)


def test_an_activation_of_a_cross_encoders_own_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plain = checkpoint("distilbert", "AutoModelForSequenceClassification", id2label={0: "relevant"})
    path = Path(shutil.copytree(plain, tmp_path / "reranker"))
    edit(path / "config.json", sbert_ce_default_activation_function="mine.Activation")
    with pytest.raises(CheckpointError, match=r"made by mine\.Activation"):
        text_checkpoints.read(str(path))
