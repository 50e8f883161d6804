"""Reads what sentence-transformers keeps of a SparseEncoder: how the logits of masked words become sparse embeddings.

Source: sentence-transformers 6.2, sparse_encoder/model.py and sparse_encoder/modules/splade_pooling.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from archive.checkpoints import sentence_keys
from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.json_files import path_inside, read_json
from handlers.tasks.shared.sparse_pooling import SparsePooling

TASK = "sparse-embeddings"
MODULES = (["Transformer", "SpladePooling"], ["MLMTransformer", "SpladePooling"])
WHOLE: sentence_keys.Keys = {
    **sentence_keys.WHOLE,
    "model_type": sentence_keys.one_of("SparseEncoder"),
    "max_active_dims": sentence_keys.whole,
}
TRANSFORMER: sentence_keys.Keys = {
    **sentence_keys.TRANSFORMER,
    "transformer_task": sentence_keys.one_of("fill-mask"),
}
POOLING: sentence_keys.Keys = {
    **dict.fromkeys(("word_embedding_dimension", "embedding_dimension"), sentence_keys.whole),
    "pooling_strategy": sentence_keys.anything,  # SparsePooling checks these two
    "activation_function": sentence_keys.anything,
    "chunk_size": sentence_keys.anything,  # how much memory sentence-transformers takes
}
ASSUMED = (
    "the checkpoint does not say how token logits become a sparse embedding: the largest log(1 + relu(x)) of all "
    "tokens is taken, as sentence-transformers' SparseEncoder takes it"
)


def is_splade(kinds: Sequence[str]) -> bool:
    """Return whether these are the modules of a SPLADE model, by their classes' names."""
    return list(kinds) in MODULES


def pooling(folder: Path, modules: Sequence[Mapping[str, Any]], whole: Mapping[str, Any]) -> SparsePooling:
    """Return how the folder's modules make an embedding.

    Args:
        folder: the checkpoint's.
        modules: of modules.json.
        whole: config_sentence_transformers.json's content.

    Raises:
        CheckpointError: for keys and values that would change answers and are not served.
    """
    module = modules[1]["path"]
    path, name = path_inside(folder, module, "modules.json") / "config.json", f"{module}/config.json"
    if not path.is_file():
        raise CheckpointError(f"modules.json names the folder {module!r}, which has no config.json")
    config: dict[str, Any] = read_json(path)
    sentence_keys.refuse_unknown(config, POOLING, name)
    strategy, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    try:
        return SparsePooling(str(strategy), str(activation), int(whole.get("max_active_dims") or 0))
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None


def refuse_plain_transformer(kinds: Sequence[str], content: Mapping[str, Any], file: str) -> None:
    """Raise CheckpointError if a module Transformer is not said to predict masked words: it would give vectors."""
    if kinds[0] == "Transformer" and content.get("transformer_task") != "fill-mask":
        raise CheckpointError(
            f"{file} says transformer_task: {content.get('transformer_task')!r}, and SpladePooling reads the logits "
            "of masked words; wanted: 'fill-mask'"
        )
