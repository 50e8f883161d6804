"""A Hugging Face or sentence-transformers folder of the BERT family -> model, tokenizer, task and pooling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archive.checkpoints import sentence_folders, text_configs, text_tokenizers, text_weights
from archive.checkpoints.checkpoint_files import sha256
from archive.checkpoints.guards import reading
from archive.checkpoints.sentence_folders import SentenceFolder
from archive.checkpoints.sources import HUB_TEXT, CheckpointError, listed, locate, weight_file
from handlers.engines.torch_eager import AUTO_MODELS
from handlers.settings import Pooling
from handlers.texts.network_inputs import positions_of

TASKS = {
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "Model": "embeddings",
}
LABELLED = ("sequence-classification", "token-classification")
# A CrossEncoder's activation -> the problem_type with which transformers' pipelines compute the same scores.
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "regression",
    "torch.nn.modules.activation.Sigmoid": "multi_label_classification",
    "torch.nn.modules.activation.Softmax": "single_label_classification",
}


@dataclass(frozen=True)
class TextCheckpoint:
    """A text encoder ready to be packaged.

    model: transformers model with the task's head, fp32, on the CPU, in eval mode. tokenizer: a fast one.
    max_tokens: the longest input, special tokens counted. unused: weights of the file that the task leaves out.
    notes: what of its files was read otherwise than a plain checkpoint's.
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


def read(source: str, task: str | None = None, revision: str | None = None) -> TextCheckpoint:
    """Read a folder or hub id. task: None takes the one that the checkpoint was made for.

    Raises CheckpointError for anything missing, unexpected or misshapen, by name, and for what cannot be served.
    """
    folder = locate(source, revision, HUB_TEXT)
    if not folder.is_dir():
        raise CheckpointError(f"{source} is a file; a text encoder needs its folder: config.json, weights, tokenizer")
    with reading(f"{source} cannot be read", "Wanted: the folder as save_pretrained wrote it"):
        return _read(folder, source, task)


def _read(folder: Path, source: str, asked: str | None) -> TextCheckpoint:
    content = text_configs.read(folder)
    sentence = sentence_folders.read(folder, asked)
    task = asked or sentence.task or _task(content)
    config = text_configs.build(content)
    if content.get("auto_map"):
        own = text_weights.class_for(config, task).__name__
        text_configs.refuse_foreign_code(content, config, AUTO_MODELS[task], own)
    notes = _set_labels(config, content, task, sentence)
    model, unused = text_weights.load(folder, config, task)
    tokenizer = _tokenizer(folder, model, sentence)
    return TextCheckpoint(
        model=model,
        tokenizer=tokenizer,
        task=task,
        max_tokens=_max_tokens(model.config, tokenizer, sentence),
        pooling=sentence.pooling,
        lower_case=False,  # the tokenizer does it, where the checkpoint asks for it
        unused=unused,
        source=source,
        sha256=sha256(weight_file(folder)),
        notes=notes,
    )


def _task(config: Mapping[str, Any]) -> str:
    named = config.get("architectures") or ["an unnamed architecture"]
    architecture = str(named[0]) if isinstance(named, list) else str(named)
    for suffix, task in TASKS.items():
        if architecture.endswith(suffix):
            return task
    raise CheckpointError(
        f"the checkpoint is for {architecture}, which none of the tasks serves; wanted: "
        f"{', '.join(sorted(TASKS))}. --task takes the encoder for another task, where its head is in the file"
    )


def _set_labels(config: Any, content: Mapping[str, Any], task: str, sentence: SentenceFolder) -> tuple[str, ...]:
    """Have the config name the labels, and the function that makes scores; returns what to tell of it."""
    if task not in LABELLED:
        return ()
    labels = config.id2label
    if not isinstance(labels, dict) or sorted(labels) != list(range(len(labels))):
        numbers = listed(map(str, labels)) if isinstance(labels, dict) else repr(labels)
        raise CheckpointError(
            f"id2label in config.json must number its {len(labels or ())} labels from 0, one by one; it has "
            f"{numbers}. Mend it there: a label for each row of the classifier"
        )
    config.id2label = {place: str(labels[place]) for place in range(len(labels))}
    config.label2id = {label: place for place, label in config.id2label.items()}
    activation = sentence.activation or _activation(content)
    if task != "sequence-classification" or activation is None:
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
    """The activation that older CrossEncoders keep in config.json; the first key is of versions 4 and 5."""
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
    """What sentence-transformers' files say, else the tokenizer's maximum; never more than there are positions."""
    with reading("the longest text that tokenizer_config.json and config.json allow", "Wanted: whole numbers there"):
        own = int(sentence.max_tokens or tokenizer.model_max_length)
        positions = positions_of(config.to_dict())
    most = own if positions is None else min(own, positions)
    if most < 3:
        raise CheckpointError(f"it takes texts of at most {most} tokens (model_max_length, max_position_embeddings)")
    return most
