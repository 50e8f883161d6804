"""The files of well-known sentence-transformers models, over small networks: packaged and answered alike.

Keys and module lists are those of the public models; sizes and weights are small and seeded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from archive.checkpoints import text_checkpoints
from archive.checkpoints.errors import CheckpointError
from handlers.text_encoder import TextEncoder
from tests.parity.sentence_reference import TEXTS, assert_sentence_transformers_agrees, reference, write

Serve = Callable[..., TextEncoder]
Ask = Callable[..., list[Any]]
Checkpoint = Callable[..., Path]

LEGACY = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
NEWER = (*LEGACY, "weightedmean_tokens", "lasttoken")
VERSION = {"__version__": {"sentence_transformers": "2.2.2", "transformers": "4.28.1", "pytorch": "1.13.0+cu117"}}
SIMILARITY = {**VERSION, "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
DENSE = {"bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
PLAIN = {**DENSE, "activation_function": "torch.nn.modules.linear.Identity"}
BGE = "Represent this sentence for searching relevant passages: "


@dataclass(frozen=True)
class Model:
    """A public model's files.

    Attributes:
        kind: of the network, as the fixture `checkpoint` has it.
        pool: the pooling's mode.
        keys: of the pooling's config.
        behind: modules behind the pooling. A Dense has the keys of its config but the sizes, and the size it gives.
        bert: content of sentence_bert_config.json.
        whole: content of config_sentence_transformers.json; None if it has no such file.
        more: keys of the pooling's config besides.
        config: keys of config.json besides.
    """

    kind: str
    pool: str = "mean_tokens"
    keys: tuple[str, ...] = LEGACY
    behind: tuple[tuple[str, Mapping[str, object], int], ...] = ()
    bert: Mapping[str, object] = field(default_factory=lambda: {"max_seq_length": 32, "do_lower_case": False})
    whole: Mapping[str, object] | None = field(default_factory=lambda: VERSION)
    more: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)


NORMALIZE: tuple[tuple[str, Mapping[str, object], int], ...] = (("Normalize", {}, 0),)
INCLUDED: Mapping[str, object] = {"include_prompt": True}
MODELS: dict[str, Model] = {
    "all-MiniLM-L6-v2": Model("bert", behind=NORMALIZE),
    "all-mpnet-base-v2": Model("mpnet", behind=NORMALIZE),
    "all-distilroberta-v1": Model("roberta", behind=NORMALIZE),
    "multi-qa-MiniLM-L6-cos-v1": Model("bert", behind=NORMALIZE, whole=None),
    "multi-qa-mpnet-base-dot-v1": Model("mpnet", "cls_token"),
    "paraphrase-MiniLM-L6-v2": Model("bert"),
    "paraphrase-multilingual-mpnet-base-v2": Model("xlm-roberta"),
    "msmarco-distilbert-base-tas-b": Model("distilbert", "cls_token"),
    "msmarco-bert-base-dot-v5": Model("bert", bert={"max_seq_length": 32, "do_lower_case": False}),
    "LaBSE": Model("bert", "cls_token", behind=(("Dense", DENSE, 384), *NORMALIZE)),
    "distiluse-base-multilingual-cased-v2": Model("distilbert", behind=(("Dense", DENSE, 16),)),
    "e5-base-v2": Model("bert", behind=NORMALIZE),
    "multilingual-e5-base": Model("xlm-roberta", behind=NORMALIZE),
    "bge-base-en-v1.5": Model(
        "bert", "cls_token", behind=NORMALIZE, bert={"max_seq_length": 32, "do_lower_case": True}
    ),
    "bge-m3": Model("xlm-roberta", "cls_token", behind=NORMALIZE),
    "gte-base": Model("bert", behind=NORMALIZE),
    "gte-modernbert-base": Model("modernbert", "cls_token", NEWER, whole=SIMILARITY, more=INCLUDED),
    "mxbai-embed-large-v1": Model(
        "bert",
        "cls_token",
        NEWER,
        more=INCLUDED,
        whole={**VERSION, "prompts": {"query": BGE, "passage": ""}, "default_prompt_name": None},
    ),
    "snowflake-arctic-embed-m-v1.5": Model(
        "bert",
        "cls_token",
        NEWER,
        behind=NORMALIZE,
        more=INCLUDED,
        whole={**VERSION, "prompts": {"query": BGE}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
        config={"matryoshka_dimensions": [256]},
    ),
    "modernbert-embed-base": Model(
        "modernbert",
        keys=NEWER,
        behind=NORMALIZE,
        more=INCLUDED,
        whole={**SIMILARITY, "prompts": {"query": "search_query: ", "document": "search_document: "}},
    ),
    "acge_text_embedding": Model("bert", behind=(("Dense", PLAIN, 448),)),
    "instructor's pooling": Model(
        "bert",
        keys=NEWER,
        behind=(("Dense", {**PLAIN, "bias": False}, 384), *NORMALIZE),
        more={"include_prompt": False},
        whole={**SIMILARITY, "prompts": {"query": "Represent the question: "}, "default_prompt_name": "query"},
    ),
}


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Callable[[Model], Path]:
    """folder(a model) -> a folder with its files."""

    def make(model: Model) -> Path:
        path = Path(shutil.copytree(checkpoint(model.kind, "AutoModel"), tmp_path / "sentences"))
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        write(path / "config.json", {**config, **model.config})
        size = int(config.get("hidden_size") or config["dim"])
        pooling = {f"pooling_mode_{key}": key == model.pool for key in model.keys}
        write(path / "1_Pooling" / "config.json", {"word_embedding_dimension": size, **pooling, **model.more})
        write(path / "sentence_bert_config.json", model.bert)
        if model.whole is not None:
            write(path / "config_sentence_transformers.json", model.whole)
        kinds = ["Transformer", "Pooling", *(kind for kind, _, _ in model.behind)]
        paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds) if index)]
        modules = [
            {"idx": index, "name": str(index), "path": name, "type": f"sentence_transformers.models.{kind}"}
            for index, (kind, name) in enumerate(zip(kinds, paths, strict=True))
        ]
        write(path / "modules.json", modules)
        torch.manual_seed(3)
        for name, (kind, keys, out) in zip(paths[2:], model.behind, strict=True):
            if kind == "Dense":
                write(path / name / "config.json", {"in_features": size, "out_features": out, **keys})
                weights = {"linear.weight": torch.randn(out, size) / size**0.5, "linear.bias": torch.randn(out)}
                kept = {key: value for key, value in weights.items() if keys["bias"] or "bias" not in key}
                save_file(kept, path / name / "model.safetensors")
        return path

    return make


@pytest.mark.parametrize("name", MODELS)
def test_its_files_give_its_embeddings(
    folder: Callable[[Model], Path], serve_texts: Serve, ask: Ask, name: str
) -> None:
    model = MODELS[name]
    path = folder(model)
    handler = serve_texts(path, engine="torch_eager")
    whole: Mapping[str, Any] = model.whole or {}
    prompts: Mapping[str, str] = whole.get("prompts") or {}
    for prompt_name in (None, *prompts):
        used = prompts.get(prompt_name or whole.get("default_prompt_name") or "", "")
        wanted = reference(path, TEXTS, used)
        asked = {} if prompt_name is None else {"prompt_name": prompt_name}
        assert_sentence_transformers_agrees(path, wanted, **asked)
        np.testing.assert_allclose(ask(handler, TEXTS, truncate=True, **asked), wanted, rtol=2e-6, atol=2e-5)
    assert handler.model.settings.dimensions == tuple(model.config.get("matryoshka_dimensions", ()))  # type: ignore[arg-type]


RERANKERS: dict[
    str, tuple[str, Mapping[str, object], bool]
] = {  # network, keys of config.json, whether scores are logits
    "ms-marco-MiniLM-L6-v2": (
        "bert",
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        True,
    ),
    "ms-marco-MiniLM-L6-v2 since 2025": (
        "bert",
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0.dev0"}},
        True,
    ),
    "bge-reranker-base": ("xlm-roberta", {}, False),
    "mxbai-rerank-base-v1": ("deberta-v2", {}, False),
    "gte-reranker-modernbert-base": ("modernbert", {}, False),
    "stsb-roberta-base": ("roberta", {}, False),
}


@pytest.mark.parametrize("name", RERANKERS)
def test_rerankers(checkpoint: Checkpoint, serve_texts: Serve, ask: Ask, tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    kind, keys, raw = RERANKERS[name]
    plain = checkpoint(kind, "AutoModelForSequenceClassification", id2label={0: "LABEL_0"})
    path = Path(shutil.copytree(plain, tmp_path / "reranker"))
    write(path / "config.json", {**json.loads((path / "config.json").read_text(encoding="utf-8")), **keys})
    query, documents = "how tall is the tower", ["The tower is 330 metres tall.", "Bread."]
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForSequenceClassification.from_pretrained(path)
    with torch.inference_mode():
        tokens = [tokenizer(query, document, return_tensors="pt") for document in documents]
        logits = torch.cat([model.eval()(**pair).logits[0] for pair in tokens])
    wanted = logits if raw else logits.sigmoid()
    answers = ask(
        serve_texts(path, engine="torch_eager"), [{"text": query, "text_pair": document} for document in documents]
    )
    np.testing.assert_allclose([answer[0]["score"] for answer in answers], wanted, rtol=0, atol=1e-5)


# Models whose networks come as code of their own, and decoders: their config.json, and what the refusal says.
OWN_CODE: dict[str, tuple[dict[str, object], str]] = {
    "jina-embeddings-v2-base-en": (
        {
            "model_type": "bert",
            "position_embedding_type": "alibi",
            "auto_map": {
                "AutoConfig": "jinaai/jina-bert-implementation--configuration_bert.JinaBertConfig",
                "AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel",
            },
        },
        "position_embedding_type 'alibi'",
    ),
    "gte-base-en-v1.5": (
        {
            "model_type": "new",
            "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
        },
        "code of its own",
    ),
    "sentence-t5-base, gtr-t5-base, instructor-base": (
        {"model_type": "t5", "is_encoder_decoder": True},
        "is a decoder",
    ),
}


@pytest.mark.parametrize("name", OWN_CODE)
def test_what_is_refused_and_why(folder: Callable[[Model], Path], name: str) -> None:
    config, expected = OWN_CODE[name]
    path = folder(Model("bert", config=config))
    with pytest.raises(CheckpointError) as refused:
        text_checkpoints.read(str(path))
    assert expected in str(refused.value)
