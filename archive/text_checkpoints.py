"""A Hugging Face or sentence-transformers folder of the BERT family -> model, tokenizer, task and pooling."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_MASKED_LM_MAPPING

from archive.checkpoint_files import sha256
from archive.sources import (
    HUB_TEXT,
    SENTENCE_CONFIGS,
    SENTENCE_PROMPTS,
    CheckpointError,
    listed,
    locate,
    read_json,
    refuse_custom_code,
    weight_file,
)
from handlers import LOCAL
from handlers.engines.torch_eager import load_transformer
from handlers.settings import Pooling
from handlers.texts import positions_of

TASKS = {
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "Model": "embeddings",
}
# Weights that a task can do without: other tasks' heads, the pooling layer, and buffers that old files stored.
UNUSED = {
    "embeddings": re.compile(
        r"(.*\.)?(pooler|position_ids)\b.*|cls\..*|lm_head\..*|vocab_\w+\..*|generator_\w+\..*|discriminator_\w+\..*"
    ),
    "fill-mask": re.compile(r"(.*\.)?(pooler|position_ids)\b.*|cls\.seq_relationship\..*|discriminator_\w+\..*"),
    "token-classification": re.compile(r"(.*\.)?(pooler|position_ids)\b.*"),
    "sequence-classification": re.compile(r"(.*\.)?position_ids\b.*"),
}
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class TextCheckpoint:
    """A text encoder ready to be packaged.

    model: transformers model with the task's head, fp32, on the CPU, in eval mode. tokenizer: a fast one.
    max_tokens: the longest input, special tokens counted. unused: weights of the file that the task leaves out.
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


def read(source: str, task: str | None = None, revision: str | None = None) -> TextCheckpoint:
    """Read a folder or hub id. task: None takes the one that the checkpoint was made for.

    Raises CheckpointError for anything missing, unexpected or misshapen, by name, and for what cannot be served.
    """
    folder = locate(source, revision, HUB_TEXT)
    if not folder.is_dir():
        raise CheckpointError(f"{source} is a file; a text encoder needs its folder: config.json, weights, tokenizer")
    config = read_json(folder / "config.json")
    refuse_custom_code(config, "config.json")
    modules = _sentence_modules(folder)
    task = task or _task(config, modules)
    if config.get("is_decoder") or config.get("is_encoder_decoder"):
        raise CheckpointError(f"the {config.get('model_type')} model is a decoder; this serves encoders")
    model, unused = _load_model(folder, task)
    if type(model.config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise CheckpointError(
            f"the {config.get('model_type')} model has no masked-language-model form: a decoder, or no text encoder "
            "of the BERT family"
        )
    tokenizer = _load_tokenizer(folder)
    rows = model.get_input_embeddings().num_embeddings
    if max(tokenizer.get_vocab().values()) >= rows:
        raise CheckpointError(f"its tokenizer knows {len(tokenizer)} tokens, and the model has embeddings for {rows}")
    named = [folder / name for name in SENTENCE_CONFIGS if modules and (folder / name).is_file()]
    sentence = read_json(named[0]) if named else {}
    return TextCheckpoint(
        model=model,
        tokenizer=tokenizer,
        task=task,
        max_tokens=_max_tokens(model.config, tokenizer, sentence),
        pooling=_pooling(folder, modules) if task == "embeddings" else None,
        lower_case=bool(sentence.get("do_lower_case", False)),
        unused=unused,
        source=source,
        sha256=sha256(weight_file(folder)),
    )


def _task(config: Mapping[str, Any], modules: list[dict[str, Any]]) -> str:
    if modules:
        return "embeddings"
    architecture = str((config.get("architectures") or ["an unnamed architecture"])[0])
    for suffix, task in TASKS.items():
        if architecture.endswith(suffix):
            return task
    raise CheckpointError(
        f"the checkpoint is for {architecture}, which none of the tasks serves; wanted: "
        f"{', '.join(sorted(TASKS))}. --task takes the encoder for another task, where its head is in the file"
    )


def _sentence_modules(folder: Path) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers folder, checked; empty for a plain transformers folder."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    modules: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    types = [str(module.get("type", "")) for module in modules]
    strange = [kind for kind in types if kind.partition(".")[0] != "sentence_transformers"]
    if strange:
        raise CheckpointError(
            f"modules.json names code of its own to run ({listed(strange)}), which packaging and workers never do; "
            "wanted: modules of sentence_transformers"
        )
    kinds = [kind.rpartition(".")[2] for kind in types]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(
            f"modules.json lists {' -> '.join(kinds)}; served: Transformer -> Pooling, with or without Normalize"
        )
    if modules[0].get("path"):
        raise CheckpointError(f"modules.json keeps the transformer in {modules[0]['path']!r}; wanted: in the folder")
    _refuse_prompt(folder)
    return modules


def _refuse_prompt(folder: Path) -> None:
    """Raises CheckpointError where sentence-transformers would put a prompt before every text."""
    path = folder / SENTENCE_PROMPTS
    content: dict[str, Any] = read_json(path) if path.is_file() else {}
    name = content.get("default_prompt_name")
    if name is not None and (content.get("prompts") or {}).get(name):
        raise CheckpointError(
            f"its {SENTENCE_PROMPTS} puts the prompt {name!r} before every text (default_prompt_name), which is not "
            "served; take default_prompt_name out, and let clients send texts with the prompt before them"
        )


def _pooling(folder: Path, modules: list[dict[str, Any]]) -> Pooling | None:
    if not modules:
        return None
    config = read_json(folder / str(modules[1]["path"]) / "config.json")
    modes = [mode for key, mode in POOLING_KEYS.items() if config.get(key)]
    if "pooling_mode" in config:  # newer files name the modes
        named = config["pooling_mode"]
        modes = [str(mode) for mode in named] if isinstance(named, list) else str(named).split("+")
    if config.get("include_prompt") is False:
        raise CheckpointError("its pooling leaves a prompt out (include_prompt: false), which is not served")
    try:
        return Pooling(tuple(modes), normalize=len(modules) == 3)
    except ValueError as error:
        raise CheckpointError(f"the pooling config is not served: {error}") from None


def _load_model(folder: Path, task: str) -> tuple[Any, tuple[str, ...]]:
    try:
        model, report = load_transformer(
            folder, task, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"transformers cannot load it for {task}: {error}") from error
    unexpected = sorted(report["unexpected_keys"])
    strange = [name for name in unexpected if not UNUSED[task].fullmatch(name)]
    missing = [f"missing {name}" for name in sorted(report["missing_keys"])]
    misshapen = [
        f"misshapen {name} {tuple(came)}, wanted {tuple(wanted)}"
        for name, came, wanted in sorted(report["mismatched_keys"])
    ]
    problems = [*missing, *misshapen, *(f"unexpected {name}" for name in strange)]
    if problems:
        raise CheckpointError(
            f"the weights do not fit {type(model).__name__}: {listed(problems)}. "
            "A head that is missing would be random: choose the --task that the checkpoint was trained for"
        )
    broken = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"these weights are not finite (NaN or infinity): {listed(broken)}")
    return model.eval(), tuple(unexpected)


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in VOCABULARIES):  # transformers would make an empty one up
        raise CheckpointError(f"the folder has no tokenizer; wanted: one of {', '.join(VOCABULARIES)}")
    path = folder / "tokenizer_config.json"
    refuse_custom_code(read_json(path) if path.is_file() else {}, path.name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"transformers cannot load its tokenizer: {error}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{type(tokenizer).__name__} has no fast form (tokenizer.json), which serving needs")
    return tokenizer


def _max_tokens(config: Any, tokenizer: Any, sentence: Mapping[str, Any]) -> int:
    """The least of what the network, its tokenizer and sentence-transformers allow."""
    asked = sentence.get("max_seq_length")
    limits = [positions_of(config.to_dict()), int(tokenizer.model_max_length), int(asked) if asked else None]
    return min(limit for limit in limits if limit is not None)
