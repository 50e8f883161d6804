"""Embeddings by the formulas of sentence-transformers' modules, one text at a time; and the library's own."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

Array = NDArray[np.float32]
TANH = "torch.nn.modules.activation.Tanh"
TEXTS = [
    "Ada Lovelace wrote to Charles Babbage from London.",
    "The ferry from Gothenburg to Kiel leaves at seven, and Mr. Olsen has not yet bought a ticket for his horse.",
    "Zürich, São Paulo, Kraków; naïve café: déjà vu! " * 3,
    "x",
]


def write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@torch.inference_mode()
def reference(path: Path, texts: Sequence[str], prompt: str = "") -> Array:
    """Return the embeddings that sentence-transformers' modules make of the texts, one text at a time."""
    modules = json.loads((path / "modules.json").read_text(encoding="utf-8"))
    inner = path / modules[0]["path"]
    tokenizer, model = AutoTokenizer.from_pretrained(inner), AutoModel.from_pretrained(inner).eval()
    most = min(int(tokenizer.model_max_length), int(model.config.max_position_embeddings))
    settings = inner / "sentence_bert_config.json"
    if settings.is_file():
        most = json.loads(settings.read_text(encoding="utf-8")).get("max_seq_length") or most
    length = len(tokenizer(prompt)["input_ids"]) - 1 if prompt else 0
    rows = []
    for text in texts:
        tokens = tokenizer(prompt + text, truncation=True, max_length=most, return_tensors="pt")
        tokens.pop("token_type_ids", None) if model.config.model_type == "distilbert" else None
        vectors = model(**tokens).last_hidden_state[0]
        for module in modules[1:]:
            vectors = formula(path / module["path"], module["type"].rpartition(".")[2], vectors, length)
        rows.append(vectors)
    found: Array = torch.stack(rows).numpy()
    return found


def formula(path: Path, kind: str, x: torch.Tensor, prompt_length: int) -> torch.Tensor:
    """Return one module's output: (T, hidden) -> (size,) for Pooling, (size,) -> (size,) for the others."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8")) if kind != "Normalize" else {}
    if kind == "Pooling":
        return pooled(config, x, 0 if config.get("include_prompt", True) else prompt_length)
    if kind == "Normalize":
        return torch.nn.functional.normalize(x, dim=0)
    if kind == "Dropout":
        return x
    file = path / "model.safetensors"
    weights: dict[str, torch.Tensor] = (
        load_file(file) if file.is_file() else torch.load(path / "pytorch_model.bin", weights_only=True)
    )
    if kind == "LayerNorm":
        return torch.nn.functional.layer_norm(x, x.shape, weights["norm.weight"], weights["norm.bias"])
    name = config.get("activation_function", TANH).rpartition(".")[2]
    found: torch.Tensor = getattr(torch.nn, name)()(weights["linear.weight"] @ x + weights.get("linear.bias", 0))
    residual = weights["residual.weight"] @ x if "residual.weight" in weights else x
    return found + residual if config.get("use_residual") else found


def pooled(config: Mapping[str, Any], x: torch.Tensor, start: int) -> torch.Tensor:
    positions = torch.arange(1, len(x) + 1)[start:, None]
    x = x[start:]
    modes = {
        "pooling_mode_cls_token": x[0],
        "pooling_mode_max_tokens": x.max(dim=0).values,
        "pooling_mode_mean_tokens": x.mean(dim=0),
        "pooling_mode_mean_sqrt_len_tokens": x.sum(dim=0) / len(x) ** 0.5,
        "pooling_mode_weightedmean_tokens": (x * positions).sum(dim=0) / positions.sum(),
        "pooling_mode_lasttoken": x[-1],
    }
    return torch.cat([vector for name, vector in modes.items() if config.get(name)])


def assert_sentence_transformers_agrees(path: Path, wanted: Array, **options: Any) -> None:
    """Where the library is installed, its own encode gives the same: the formulas here are right."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(path), device="cpu").encode(TEXTS, **options)
    np.testing.assert_allclose(theirs, wanted, rtol=0, atol=3e-5)
