"""Sparse embeddings, against sentence-transformers' SparseEncoder and its formula, on the same checkpoint."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
from transformers import AutoModelForMaskedLM, AutoTokenizer

from archive.checkpoints import text_checkpoints
from archive.checkpoints.errors import CheckpointError
from handlers import engines
from handlers.encoder.packing import TokenBatch
from handlers.engines import EngineSpec, sparse_logits
from handlers.tasks.shared.sparse_pooling import ACTIVATIONS, STRATEGIES, SparsePooling
from handlers.text_encoder import TextEncoder

# transformers 5.20 scripts a part of DeBERTa with TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

Serve = Callable[..., TextEncoder]
Ask = Callable[..., list[Any]]
Checkpoint = Callable[..., Path]
Floats = NDArray[np.float32]

FAMILIES = ("bert", "roberta", "distilbert", "electra", "deberta-v2", "modernbert")
TEXTS = [
    "Ada Lovelace wrote to Charles Babbage from London.",
    "x",
    "Zürich, São Paulo; naïve café!",
    "  leading and trailing   spaces ",
    "the river ran past old houses and a garden",
]


def dense(answer: Sequence[Mapping[str, Any]], size: int) -> Floats:
    """The whole embedding, (size,), of an answer whose indices ascend and whose values are above zero."""
    indices = [entry["index"] for entry in answer]
    assert indices == sorted(set(indices))
    assert all(entry["value"] > 0 for entry in answer)
    embedding = np.zeros(size, np.float32)
    embedding[indices] = [entry["value"] for entry in answer]
    return embedding


@functools.cache
def loaded(folder: Path) -> tuple[Any, Any]:
    model: Any = AutoModelForMaskedLM.from_pretrained(folder)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def by_formula(folder: Path, text: str, pooling: SparsePooling) -> Floats:
    """One text alone, as the SPLADE papers have it: nothing is padded."""
    model, tokenizer = loaded(folder)
    logits = model(**tokenizer(text, truncation=True, max_length=64, return_tensors="pt")).logits[0]
    weights = torch.log(1 + torch.clamp(logits, min=0))
    if pooling.activation == "log1p_relu":
        weights = torch.log(1 + weights)
    found: Floats = (weights.amax(0) if pooling.strategy == "max" else weights.sum(0)).numpy()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_checkpoint_for_masked_words(
    serve_texts: Serve, checkpoint: Checkpoint, ask: Ask, family: str
) -> None:
    folder = checkpoint(family, "AutoModelForMaskedLM")
    handler = serve_texts(folder, "--task", "sparse-embeddings", truncate=True, maxTokens=64)
    answers = ask(handler, TEXTS)
    size = int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    for text, answer in zip(TEXTS, answers, strict=True):
        wanted = by_formula(folder, text, SparsePooling())
        np.testing.assert_allclose(dense(answer, size), wanted, rtol=0, atol=2e-5)
        np.testing.assert_allclose(dense(ask(handler, [text])[0], size), wanted, rtol=0, atol=2e-5)


def saved(base: Path, folder: Path, transformer: Any, strategy: Any, activation: Any, **options: Any) -> Any:
    modules = [transformer(str(base)), SpladePooling(strategy, activation_function=activation)]
    model = SparseEncoder(modules=modules, device="cpu", **options)
    model.save_pretrained(str(folder))
    return model


def new_module(base: str) -> Any:
    return Transformer(base, transformer_task="fill-mask", max_seq_length=32)


def old_module(base: str) -> Any:
    return MLMTransformer(base, max_seq_length=32)


@pytest.mark.parametrize("transformer", [new_module, old_module])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_folder_of_sentence_transformers(
    serve_texts: Serve,
    checkpoint: Checkpoint,
    ask: Ask,
    tmp_path: Path,
    transformer: Any,
    strategy: str,
    activation: str,
) -> None:
    model = saved(checkpoint("electra", "AutoModelForMaskedLM"), tmp_path, transformer, strategy, activation)
    handler = serve_texts(tmp_path, truncate=True)
    assert handler.model.settings.task == "sparse-embeddings"
    assert handler.model.settings.max_tokens == 32
    assert handler.model.settings.sparse_pooling == SparsePooling(strategy, activation)
    texts = [*TEXTS, "a long one " * 30]
    wanted = model.encode(texts, convert_to_sparse_tensor=False, batch_size=3).numpy()  # padded there
    for answer, row in zip(ask(handler, texts), wanted, strict=True):
        np.testing.assert_allclose(dense(answer, len(row)), row, rtol=1e-5, atol=2e-5)


def test_max_active_dims_of_the_folder_and_of_a_request(
    serve_texts: Serve, checkpoint: Checkpoint, ask: Ask, tmp_path: Path
) -> None:
    base = checkpoint("distilbert", "AutoModelForMaskedLM")
    model = saved(base, tmp_path, new_module, "max", "relu", max_active_dims=20)
    handler = serve_texts(tmp_path)
    for options, count in (({}, 20), ({"max_active_dims": 3}, 3), ({"max_active_dims": 30_000}, None)):
        wanted = model.encode(TEXTS, convert_to_sparse_tensor=False, **({"max_active_dims": count} if count else {}))
        answers = ask(handler, TEXTS, **options)
        if count is None:
            assert all(len(answer) > 20 for answer in answers)
            continue
        for answer, row in zip(answers, wanted.numpy(), strict=True):
            assert len(answer) == count
            np.testing.assert_allclose(dense(answer, len(row)), row, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        ("1_SpladePooling/config.json", {"pooling_strategy": "mean"}, "strategy is 'mean'; wanted: max, sum"),
        ("1_SpladePooling/config.json", {"activation_function": "gelu"}, "activation is 'gelu'"),
        ("1_SpladePooling/config.json", {"idf": True}, "says idf, which is not known"),
        ("config_sentence_transformers.json", {"model_type": "SentenceTransformer"}, "model_type"),
        ("config_sentence_transformers.json", {"max_active_dims": -1}, "max_active_dims: -1"),
        ("sentence_bert_config.json", {"transformer_task": "feature-extraction"}, "transformer_task"),
        ("sentence_bert_config.json", {"transformer_task": None}, "wanted: 'fill-mask'"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    checkpoint: Checkpoint, tmp_path: Path, file: str, changes: dict[str, object], expected: str
) -> None:
    saved(checkpoint("distilbert", "AutoModelForMaskedLM"), tmp_path, new_module, "max", "relu")
    path = tmp_path / file
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    with pytest.raises(CheckpointError) as refused:
        text_checkpoints.read(str(tmp_path))
    assert expected in str(refused.value)


def test_the_checkpoint_says_what_is_assumed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint("distilbert", "AutoModelForMaskedLM")
    (note,) = text_checkpoints.read(str(base), "sparse-embeddings").notes
    assert "the largest log(1 + relu(x)) of all tokens is taken" in note
    assert text_checkpoints.read(str(base)).task == "fill-mask"
    saved(base, tmp_path, new_module, "sum", "relu")
    assert text_checkpoints.read(str(tmp_path)).notes == ()
    assert text_checkpoints.read(str(tmp_path), "fill-mask").task == "fill-mask"


@pytest.mark.parametrize(
    ("precision", "strategy", "logits"),
    [
        *(("fp32", "max", logits) for logits in (1 << 25, 1, 30_522 * 9)),
        *(("fp32", "sum", 30_522 * 9), ("fp16", "max", 1 << 25), ("fp16", "sum", 1 << 25), ("bf16", "max", 1 << 25)),
    ],
)
def test_every_engine_pools_alike_however_few_logits_come_at_once(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, precision: str, strategy: str, logits: int
) -> None:
    monkeypatch.setattr(sparse_logits, "LOGITS", logits)
    folder = checkpoint("electra", "AutoModelForMaskedLM")
    pooling = SparsePooling(strategy)
    spec = EngineSpec(
        "text-encoder", folder, torch.device("cpu"), precision, "sparse-embeddings", sparse_pooling=pooling
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXTS)["input_ids"]
    batch = TokenBatch.pack(ids, [[0] * len(row) for row in ids], spec.device)
    wanted = np.stack([by_formula(folder, text, pooling) for text in TEXTS])
    names = ("torch_eager", "fused", "onnxruntime") if precision == "fp32" else ("torch_eager", "fused")
    for name in names:
        found = engines.load(name, spec).run(batch)
        assert found.dtype == torch.float32
        assert found.shape == wanted.shape
        if precision == "fp32":
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-4)
        least = torch.nn.functional.cosine_similarity(found, torch.from_numpy(wanted)).min()
        assert float(least) >= {"fp32": 0.999999, "fp16": 0.9999, "bf16": 0.999}[precision]
