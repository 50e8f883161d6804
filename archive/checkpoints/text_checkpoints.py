"""Reads a Hugging Face or sentence-transformers folder of the BERT family: model, tokenizer, task, pooling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archive.checkpoints import (
    sentence_folders,
    sentence_prompts,
    splade_folders,
    text_configs,
    text_tokenizers,
    text_weights,
)
from archive.checkpoints.errors import CheckpointError, explain_failure
from archive.checkpoints.locations import HUB_TEXT, locate, weight_file
from archive.checkpoints.sentence_folders import SentenceFolder
from archive.checkpoints.sentence_prompts import NO_PROMPTS, Prompts
from archive.checkpoints.weight_files import sha256
from handlers import tasks
from handlers.engines.text_networks import AUTO_MODELS
from handlers.misfits import listed
from handlers.tasks.shared.embedding_head import EmbeddingHead
from handlers.tasks.shared.pooling import Pooling
from handlers.tasks.shared.sparse_pooling import SparsePooling
from handlers.texts.network_inputs import positions_of

# How a class name in config.json ends -> the task that it is made for. Longer endings are tried first.
TASKS = dict(
    sorted(
        ((ending, task) for task in tasks.names() for ending in tasks.head(task).architectures),
        key=lambda pair: -len(pair[0]),
    )
)
# A CrossEncoder's activation -> the problem_type with which transformers' pipelines compute the same scores.
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "regression",
    "torch.nn.modules.activation.Sigmoid": "multi_label_classification",
    "torch.nn.modules.activation.Softmax": "single_label_classification",
}


@dataclass(frozen=True)
class TextCheckpoint:
    """A text encoder that is ready to be packaged.

    Attributes:
        model: transformers' model with the task's head, fp32, on the CPU, in eval mode.
        tokenizer: a fast one.
        task: one of handlers.settings.TEXT_TASKS.
        max_tokens: the longest input, special tokens counted.
        pooling: how token vectors become an embedding; None if the checkpoint does not say.
        lower_case: whether texts have to be lowered before they are tokenized.
        unused: weights of the file that the task does not use.
        source: what was asked for, as given.
        sha256: of the weight file, in hex; of a sharded checkpoint, of the index and then its shards in name order.
        notes: what is read from its files in another way than a plain checkpoint's, for people.
        sparse: how token logits become a sparse embedding; None if the checkpoint does not say.
        prompts: texts that stand before a client's text.
        head: modules between pooling and the embedding; None if there are none.
        dimensions: shorter embeddings that it was trained for, as numbers of an embedding.
        truncate_dim: numbers of an embedding unless a request asks for others; 0 for all.
    """

    model: Any
    tokenizer: Any
    task: str
    max_tokens: int
    pooling: Pooling | None
    lower_case: bool
    unused: tuple[str, ...]
    source: str
    sha256: str
    notes: tuple[str, ...] = ()
    sparse: SparsePooling | None = None
    prompts: Prompts = NO_PROMPTS
    head: EmbeddingHead | None = None
    dimensions: tuple[int, ...] = ()
    truncate_dim: int = 0


def read(source: str, task: str | None = None, revision: str | None = None) -> TextCheckpoint:
    """Read a text encoder.

    Args:
        source: a folder, or a Hugging Face Hub id.
        task: what it is served for; None is what the checkpoint was made for.
        revision: branch, tag or commit; for a Hub id only.

    Raises:
        CheckpointError: for weights that are missing, unexpected or misshapen, and for what cannot be served.
    """
    folder = locate(source, revision, HUB_TEXT)
    if not folder.is_dir():
        raise CheckpointError(f"{source} is a file; a text encoder needs its folder: config.json, weights, tokenizer")
    with explain_failure(f"{source} cannot be read", "Wanted: the folder as save_pretrained wrote it"):
        return _read(folder, source, task)


def _read(root: Path, source: str, asked: str | None) -> TextCheckpoint:
    sentence, folder = sentence_folders.read(root, asked), sentence_folders.transformer_folder(root)
    content = text_configs.read(folder)
    task = asked or sentence.task or _task(content)
    config = text_configs.build(content)
    if content.get("auto_map"):
        own = text_weights.class_for(config, task).__name__
        text_configs.refuse_foreign_code(content, config, AUTO_MODELS[task], own)
    notes = _set_labels(config, content, task, sentence)
    if task == splade_folders.TASK and sentence.sparse is None:
        notes = (*notes, splade_folders.ASSUMED)
    model, unused = text_weights.load(folder, config, task)
    tokenizer = _tokenizer(folder, model, sentence)
    return TextCheckpoint(
        model=model,
        tokenizer=tokenizer,
        task=task,
        max_tokens=_max_tokens(model.config, tokenizer, sentence),
        pooling=sentence.pooling,
        lower_case=False,  # the tokenizer does it if the checkpoint asks for it
        unused=unused,
        source=source,
        sha256=sha256(weight_file(folder)),
        sparse=sentence.sparse,
        notes=(*notes, *sentence_prompts.notes(sentence.prompts)),
        prompts=sentence.prompts,
        head=sentence.head,
        dimensions=_dimensions(content) if tasks.head(task).is_embedding else (),
        truncate_dim=sentence.truncate_dim,
    )


def _task(config: Mapping[str, Any]) -> str:
    named = config.get("architectures") or ["an unnamed architecture"]
    architecture = str(named[0]) if isinstance(named, list) else str(named)
    for suffix, task in TASKS.items():
        if architecture.endswith(suffix):
            return task
    if "Image" in architecture:
        raise CheckpointError(
            f"the checkpoint is for images ({architecture}); use the command image-classifier or image-encoder"
        )
    raise CheckpointError(
        f"the checkpoint is for {architecture}, which none of the tasks serves; wanted: an architecture that ends in "
        f"{', '.join(sorted(TASKS))}. --task takes the encoder for another task, if its head is in the file"
    )


def _dimensions(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the sizes of config.json's key matryoshka_dimensions, which some checkpoints have."""
    sizes = config.get("matryoshka_dimensions") or []
    if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
        raise CheckpointError(f"config.json says matryoshka_dimensions {sizes!r}; wanted: a list of sizes above 0")
    return tuple(sorted(set(sizes)))


def _set_labels(config: Any, content: Mapping[str, Any], task: str, sentence: SentenceFolder) -> tuple[str, ...]:
    """Set labels and problem_type (the function that makes scores) in the config, and return notes about it."""
    if not tasks.head(task).has_labels:
        return ()
    labels = config.id2label
    if not isinstance(labels, dict) or sorted(labels) != list(range(len(labels))):
        numbers = listed(map(str, labels)) if isinstance(labels, dict) else repr(labels)
        raise CheckpointError(
            f"id2label in config.json must number its {len(labels or ())} labels from 0, one by one; it has "
            f"{numbers}. Mend it there: a label for each row of the classifier"
        )
    config.id2label = {index: str(labels[index]) for index in range(len(labels))}
    config.label2id = {label: index for index, label in config.id2label.items()}
    activation = sentence.activation or _activation(content)
    if tasks.head(task).rows != "text" or activation is None:
        return ()
    if activation not in ACTIVATIONS:
        raise CheckpointError(
            f"its scores are made by {activation} (activation_fn of a CrossEncoder), which is not served; "
            f"wanted: {', '.join(ACTIVATIONS)}"
        )
    config.problem_type = _problem(activation, len(labels))
    return (f"scores are made as the CrossEncoder's activation says: {activation.rpartition('.')[2]}",)


def _problem(activation: str, labels: int) -> str:
    problem = ACTIVATIONS[activation]
    if problem == "single_label_classification" and labels == 1:
        raise CheckpointError(f"its scores are made by {activation} of one label, which are 1 for every text")
    return problem


def _activation(content: Mapping[str, Any]) -> str | None:
    """Return the activation that older CrossEncoders keep in config.json. Versions 4 and 5 have the first key."""
    newer = content.get("sentence_transformers")
    named = newer.get("activation_fn") if isinstance(newer, dict) else None
    named = named or content.get("sbert_ce_default_activation_function")
    return None if named is None else str(named)


def _tokenizer(folder: Path, model: Any, sentence: SentenceFolder) -> Any:
    tokenizer = text_tokenizers.load(folder, model.config, sentence.tokenizer)
    rows = model.get_input_embeddings().num_embeddings
    if max(tokenizer.get_vocab().values()) >= rows:
        raise CheckpointError(f"its tokenizer knows {len(tokenizer)} tokens, and the model has embeddings for {rows}")
    if sentence.lower_case:
        text_tokenizers.lower_cased(tokenizer)
    if not sentence.special_tokens:
        text_tokenizers.without_special_tokens(tokenizer)
    return tokenizer


def _max_tokens(config: Any, tokenizer: Any, sentence: SentenceFolder) -> int:
    """Return what sentence-transformers' files say, else the tokenizer's maximum; at most as many as positions."""
    with explain_failure(
        "the longest text that tokenizer_config.json and config.json allow", "Wanted: whole numbers there"
    ):
        own = int(sentence.max_tokens or tokenizer.model_max_length)
        positions = positions_of(config.to_dict())
    most = own if positions is None else min(own, positions)
    if most < 3:
        raise CheckpointError(f"it takes texts of at most {most} tokens (model_max_length, max_position_embeddings)")
    return most
