"""Reads sentence-transformers' files in a transformers folder: modules, prompts, lengths, call options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archive.checkpoints import sentence_heads, sentence_keys, sentence_prompts, splade_folders
from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.json_files import path_inside, read_any_json, read_json
from archive.checkpoints.locations import SENTENCE_CONFIGS, SENTENCE_PROMPTS
from archive.checkpoints.sentence_prompts import NO_PROMPTS, Prompts
from handlers.misfits import listed
from handlers.tasks.shared.embedding_head import EmbeddingHead
from handlers.tasks.shared.pooling import Pooling
from handlers.tasks.shared.sparse_pooling import SparsePooling

MODULES = "modules.json"
POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
EMBEDDER = ["Transformer", "Pooling"]
CROSS_ENCODER = ["Transformer"]


@dataclass(frozen=True)
class SentenceFolder:
    """What those files say. A plain transformers folder has the defaults.

    Attributes:
        task: that its modules are for; None if it has no modules.
        pooling: how token vectors become an embedding; None if there is none.
        max_tokens: the longest input as the files say it; None if they do not.
        lower_case: lower texts before they are tokenized.
        special_tokens: whether the tokenizer adds its special tokens.
        tokenizer: options for AutoTokenizer.
        activation: full name of the class that makes a CrossEncoder's scores.
        sparse: how token logits become a sparse embedding; None if there is none.
        prompts: texts that stand before a client's text.
        head: modules between pooling and the embedding; None if there are none.
        truncate_dim: numbers of an embedding, which are cut off behind them; 0 for all.
    """

    task: str | None = None
    pooling: Pooling | None = None
    max_tokens: int | None = None
    lower_case: bool = False
    special_tokens: bool = True
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    activation: str | None = None
    sparse: SparsePooling | None = None
    prompts: Prompts = NO_PROMPTS
    head: EmbeddingHead | None = None
    truncate_dim: int = 0


def read(folder: Path, asked: str | None) -> SentenceFolder:
    """Read the files of sentence-transformers in the folder.

    Args:
        folder: the checkpoint's.
        asked: the task that the command line names, or None.

    Raises:
        CheckpointError: for modules, keys and values that would change the answers and are not served.
    """
    modules = _modules(folder)
    whole = _optional(folder, SENTENCE_PROMPTS)
    if not modules:
        return SentenceFolder()
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    cross = kinds == CROSS_ENCODER and whole.get("model_type") == "CrossEncoder"
    splade = splade_folders.is_splade(kinds)
    task = splade_folders.TASK if splade else "sequence-classification" if cross else "embeddings"
    if asked not in (None, task):  # its modules are not run: the model is served with another head
        return SentenceFolder()
    if not cross and not splade and (kinds[:2] != EMBEDDER or not set(kinds[2:]) <= set(sentence_heads.KINDS)):
        raise CheckpointError(
            f"{MODULES} lists {' -> '.join(kinds)}; served: Transformer -> Pooling, behind them any of "
            f"{', '.join(sentence_heads.KINDS)}; Transformer or MLMTransformer -> SpladePooling; and the Transformer "
            "alone of a CrossEncoder"
        )
    sentence_keys.refuse_unknown(whole, splade_folders.WHOLE if splade else sentence_keys.WHOLE, SENTENCE_PROMPTS)
    called = _transformer(transformer_folder(folder), task)
    prompts = sentence_prompts.read(whole, () if cross else sentence_prompts.ALWAYS)
    if cross:
        return SentenceFolder(task=task, prompts=prompts, activation=whole.get("activation_fn"), **called)
    if splade:
        splade_folders.refuse_plain_transformer(kinds, *_transformer_file(transformer_folder(folder)))
        pooling = splade_folders.pooling(folder, modules, whole)
        return SentenceFolder(task=task, sparse=pooling, prompts=prompts, **called)
    head, normalize = sentence_heads.read(folder, modules[2:])
    return SentenceFolder(
        task=task,
        pooling=_pooling(folder, modules[1], normalize),
        prompts=prompts,
        head=head,
        truncate_dim=whole.get("truncate_dim") or 0,
        **called,
    )


def transformer_folder(folder: Path) -> Path:
    """Return where the transformer lies: in the folder itself, or in the subfolder that older releases made.

    Raises:
        CheckpointError: for a modules.json that cannot be read, or leads out of the folder.
    """
    modules = _modules(folder)
    return path_inside(folder, modules[0].get("path"), MODULES) if modules else folder


def _optional(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    content: dict[str, Any] = read_json(path) if path.is_file() else {}
    return content


def _modules(folder: Path) -> list[dict[str, Any]]:
    """Return the modules of modules.json, whose paths stay in the folder; none for a plain transformers folder."""
    path = folder / MODULES
    if not path.is_file():
        return []
    content = read_any_json(path)
    if not isinstance(content, list) or not all(isinstance(module, dict) for module in content):
        raise CheckpointError(f"{MODULES} is no list of modules; wanted: the file as sentence-transformers saves it")
    types = [str(module.get("type", "")) for module in content]
    strange = [kind for kind in types if kind.partition(".")[0] != "sentence_transformers"]
    if strange:
        raise CheckpointError(
            f"{MODULES} names code of its own to run ({listed(strange)}), which packaging and workers never do; "
            "wanted: modules of sentence_transformers"
        )
    for module in content:
        sentence_keys.refuse_unknown(module, sentence_keys.MODULE, MODULES)
        path_inside(folder, module.get("path"), MODULES)
    return content


def _transformer_file(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the content and the name of the Transformer module's file: the first of its names that is there."""
    name = next((name for name in SENTENCE_CONFIGS if _optional(folder, name)), SENTENCE_CONFIGS[0])
    return _optional(folder, name), name


def _transformer(folder: Path, task: str) -> dict[str, Any]:
    """Read the Transformer module's file."""
    content, file = _transformer_file(folder)
    if not content:
        return {}
    keys = splade_folders.TRANSFORMER if task == splade_folders.TASK else sentence_keys.TRANSFORMER
    sentence_keys.refuse_unknown(content, keys, file)
    nested = {key: _nested(content, key, file) for key in sentence_keys.NESTED}
    wanted = {"embeddings": "feature-extraction", splade_folders.TASK: "fill-mask"}.get(task, task)
    if content.get("transformer_task") not in (None, wanted):
        raise CheckpointError(f"{file} says transformer_task {content['transformer_task']!r}, wanted {wanted!r} here")
    call = {**nested["processing_kwargs.text"], **nested["processing_kwargs.common"]}
    options = nested["tokenizer_args"] or nested["processor_kwargs"]
    lengths = (call.get("max_length"), options.get("model_max_length"), content.get("max_seq_length"))
    return {
        "max_tokens": next((length for length in lengths if length is not None), None),
        "lower_case": bool(content.get("do_lower_case")),
        "special_tokens": call.get("add_special_tokens") is not False,
        "tokenizer": {key: options[key] for key in options if key not in ("model_max_length", "trust_remote_code")},
    }


def _nested(content: Mapping[str, Any], key: str, file: str) -> dict[str, Any]:
    """Return the object under a key such as "processing_kwargs.text", checked; empty if there is none."""
    value: Any = content
    for part in key.split("."):
        value = value.get(part) or {}
        if not isinstance(value, dict):
            raise CheckpointError(f"{file} says {key}: {value!r}; wanted: an object")
    found: dict[str, Any] = value
    sentence_keys.refuse_unknown(found, sentence_keys.NESTED[key], file, f"{key}.")
    return found


def _pooling(folder: Path, module: Mapping[str, Any], normalize: bool) -> Pooling:
    path = path_inside(folder, module["path"], MODULES) / "config.json"
    name = f"{module['path']}/config.json"
    if not path.is_file():
        raise CheckpointError(f"{MODULES} names the folder {module['path']!r}, which has no config.json")
    config: dict[str, Any] = read_json(path)
    sentence_keys.refuse_unknown(config, sentence_keys.POOLING, name)
    modes = [mode for key, mode in POOLING_KEYS.items() if config.get(key)] or ["mean"]
    if "pooling_mode" in config:  # newer files name the modes
        named = config["pooling_mode"]
        modes = [str(mode) for mode in named] if isinstance(named, list) else str(named).split("+")
    try:
        return Pooling(tuple(modes), normalize, include_prompt=config.get("include_prompt") is not False)
    except ValueError as error:
        raise CheckpointError(f"the pooling config is not served: {error}") from None
