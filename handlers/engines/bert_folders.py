"""A BERT or RoBERTa that gives embeddings, read from its folder without transformers.

transformers' modelling code takes longer to import than PyTorch itself, and longer than the weights take to load. A
further worker would wait for it. So a folder whose config.json and tensors are all known here is read directly; any
other goes through transformers, as before. Both ways give the same module with the same weights, bit for bit.

Sources: transformers/models/bert/modeling_bert.py and .../roberta/modeling_roberta.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from handlers import phases, tasks
from handlers.encoder.fused import EncoderConfig, layer_shapes
from handlers.encoder.layouts import BERT
from handlers.encoder.ops import Positions
from handlers.encoder.packed import PackedEmbeddings, PackedModel
from handlers.encoder.weights import build_encoder
from handlers.engines.base import EngineSpec
from handlers.engines.weight_files import WEIGHTS, Header, has_other_files, headers

COUNTS_FROM_0 = ("bert",)
COUNTS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")  # see Positions
ACTIVATIONS = ("gelu", "relu")
SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size"),
)
# Keys of config.json that must have this value, if they are there.
FIXED = {
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "chunk_size_feed_forward": 0,
}
# Keys that change no embedding. One that is in none of these lists may: such a folder goes through transformers.
WITHOUT_EFFECT = {
    *("architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache"),
    *("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout", "initializer_range"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "gradient_checkpointing"),
    *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
    *("pooler_size_per_head", "pooler_type", "id2label", "label2id", "problem_type", "finetuning_task"),
}
KNOWN = {*SIZES, *FIXED, *WITHOUT_EFFECT, "hidden_act", "layer_norm_eps"}


@dataclass(frozen=True)
class BertFolder:
    """A folder that can be read directly.

    Args:
        path: the folder.
        content: config.json's.
        config: of the encoder.
        positions: how the model counts them.
    """

    path: Path
    content: Mapping[str, Any]
    config: EncoderConfig
    positions: Positions

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor in the file, by name."""
        sizes, width = self.content, self.config.hidden
        tables = {
            "word_embeddings": sizes["vocab_size"],
            "position_embeddings": sizes["max_position_embeddings"],
            "token_type_embeddings": sizes["type_vocab_size"],
        }
        shapes: dict[str, tuple[int, ...]] = {
            f"embeddings.{name}.weight": (rows, width) for name, rows in tables.items()
        }
        shapes |= {f"embeddings.LayerNorm.{leaf}": (width,) for leaf in ("weight", "bias")}
        whole = layer_shapes(width, self.config.intermediate)
        for fused, names in self.table().items():
            rows, *rest = whole[fused.rpartition(".")[2]]
            shapes |= {name: (rows // len(names), *rest) for name in names}
        return shapes

    def headers(self) -> dict[str, Header]:
        """Return the type and shape of each tensor in the file, by name.

        Packaging writes fp32. Another type would be fp32 in between if transformers loaded it.
        """
        return {name: ("F32", shape) for name, shape in self.shapes().items()}

    def table(self) -> dict[str, list[str]]:
        """Map a FusedEncoder's names to those of the tensors in the file that are stacked in it."""
        names = BERT.table(self.config.layers, final_norm=False)
        return {fused: [f"encoder.{part}" for part in parts] for fused, parts in names.items()}


def read(spec: EngineSpec) -> BertFolder | None:
    """Return a model's folder; None if it has to go through transformers. Reads no weights."""
    path = spec.model_dir
    if not tasks.head(spec.task).is_embedding or has_other_files(path):
        return None
    try:
        content = json.loads((path / "config.json").read_text(encoding="utf-8"))
        found = _folder(path, content) if _is_known(content) else None
        return found if found and headers(path) == found.headers() else None
    except (OSError, ValueError, SafetensorError):  # whatever is wrong with it, transformers says it
        return None


def load(spec: EngineSpec) -> PackedModel | None:
    """Load a model onto the spec's device, in its dtype and in eval mode; None if it has to go through transformers.

    Each tensor is cast on the device, one after another, so no more than one of them is there in fp32.
    """
    with phases.phase("weights"):
        folder = read(spec)
        return None if folder is None else _load(folder, spec)


@torch.no_grad()
def _load(folder: BertFolder, spec: EngineSpec) -> PackedModel:
    with safe_open(folder.path / WEIGHTS, "pt") as file:

        def tensor(*names: str) -> torch.Tensor:
            parts = [file.get_tensor(name).to(spec.device).to(spec.dtype) for name in names]
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        embeddings = _embeddings(folder, {name: tensor(name) for name in folder.shapes() if "embeddings." in name})
        state = {fused: tensor(*names) for fused, names in folder.table().items()}
    config = folder.config
    encoder = build_encoder(state, heads=config.heads, activation=config.activation, eps=config.eps)
    return PackedModel.of_parts(embeddings, encoder, spec.task, tasks.head(spec.task).rows).eval()


def _embeddings(folder: BertFolder, state: Mapping[str, torch.Tensor]) -> PackedEmbeddings:
    """Build the embeddings around tensors by their names in the file."""
    tables = {
        name: nn.Embedding.from_pretrained(state[f"embeddings.{name}.weight"])
        for name in ("word_embeddings", "token_type_embeddings", "position_embeddings")
    }
    norm = nn.LayerNorm(folder.config.hidden, eps=folder.config.eps, device="meta")
    norm.load_state_dict({leaf: state[f"embeddings.LayerNorm.{leaf}"] for leaf in ("weight", "bias")}, assign=True)
    return PackedEmbeddings(SimpleNamespace(**tables, LayerNorm=norm), None, folder.positions)


def _is_known(content: object) -> bool:
    """Whether config.json asks for nothing but what is computed here."""
    if not isinstance(content, Mapping) or content.keys() - KNOWN:
        return False
    return (
        content.get("model_type") in (*COUNTS_FROM_0, *COUNTS_AFTER_PADDING)
        and content.get("hidden_act") in ACTIVATIONS
        and all(type(content.get(name)) is int and content[name] > 0 for name in SIZES)
        and type(content.get("layer_norm_eps")) is float
        and all(content.get(name, value) == value for name, value in FIXED.items())
    )


def _folder(path: Path, content: Mapping[str, Any]) -> BertFolder | None:
    """Return a folder with a known config. Raises ValueError if no encoder has such sizes."""
    positions, padding = Positions(), content.get("pad_token_id")
    if content["model_type"] in COUNTS_AFTER_PADDING:
        if type(padding) is not int or padding < 0:
            return None
        positions = Positions(padding + 1, padding)
    config = EncoderConfig(
        layers=content["num_hidden_layers"],
        hidden=content["hidden_size"],
        heads=content["num_attention_heads"],
        intermediate=content["intermediate_size"],
        activation=content["hidden_act"],
        eps=content["layer_norm_eps"],
    )
    return BertFolder(path, content, config, positions)
