"""Loads a folder's tokenizer as a fast one of transformers, which tokenizes as the folder's own files say.

transformers gets copies of the tokenizer's files only, without the settings in them that name other files or code.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import normalizers, processors

from archive.checkpoints import sentencepiece_models
from archive.checkpoints.errors import CheckpointError, explain_failure
from archive.checkpoints.json_files import LFS_POINTER, read_json, refuse_custom_code
from archive.checkpoints.locations import SENTENCEPIECE
from handlers import LOCAL

CONFIG = "tokenizer_config.json"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", *SENTENCEPIECE)
FILES = (*VOCABULARIES, "merges.txt", "bpe.codes", "special_tokens_map.json", "added_tokens.json")
# Settings that name files or code. The others in tokenizer_config.json are for the tokenizer's class. They take
# effect in the tokenizer.json that the archive carries, or transformers ignores them too.
DROPPED = (
    *("vocab_file", "merges_file", "tokenizer_file", "spm_file", "fast_tokenizer_files", "name_or_path"),
    *("init_inputs", "tokenizer_config_file", "special_tokens_map_file", "added_tokens_file", "auto_map"),
)
RESAVED = (
    "Wanted: the files as AutoTokenizer's save_pretrained writes them; if tokenizer.json is of a newer release, "
    "upgrade the packages tokenizers and transformers"
)


def load(folder: Path, config: Any, options: Mapping[str, Any]) -> Any:
    """Load the folder's tokenizer.

    Args:
        folder: the checkpoint's.
        config: transformers' configuration of the model.
        options: what sentence-transformers would give to AutoTokenizer.from_pretrained.

    Raises:
        CheckpointError: if there is no tokenizer, its files cannot be read, it has no fast form, or it does not split
            texts as its sentencepiece model does.
    """
    held = [name for name in VOCABULARIES if (folder / name).is_file()]
    if not held:  # transformers would make up an empty one
        raise CheckpointError(f"the folder has no tokenizer; wanted: one of {', '.join(VOCABULARIES)}")
    spm = next((folder / name for name in held if name in SENTENCEPIECE), None)
    if set(held) <= set(SENTENCEPIECE):
        sentencepiece_models.refuse_without_library(held[0])
    settings = _settings(folder)
    with (
        tempfile.TemporaryDirectory() as private,
        explain_failure(f"its tokenizer ({held[0]}) cannot be loaded", RESAVED),
    ):
        _copy(folder, Path(private), settings)
        tokenizer = _from(Path(private), config, options)
        if not tokenizer.is_fast:
            raise CheckpointError(
                f"{type(tokenizer).__name__} has no fast form (tokenizer.json), which serving needs"
            )
        if spm is not None and spm.name == held[0]:
            sentencepiece_models.complete(tokenizer, spm)
    return tokenizer


def without_special_tokens(tokenizer: Any) -> None:
    """Make the tokenizer add no special tokens, as with add_special_tokens=False. Its tokenizer.json then says so."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")


def lower_cased(tokenizer: Any) -> None:
    """Make the tokenizer lower every text first, as sentence-transformers does for do_lower_case."""
    backend = tokenizer.backend_tokenizer
    held: Any = backend.normalizer
    nested = type(held) is normalizers.Sequence
    every: list[Any] = list(held) if nested else [] if held is None else [held]
    if not any(isinstance(item, normalizers.Lowercase) for item in every):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *every])


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    content: dict[str, Any] = read_json(path) if path.is_file() else {}
    refuse_custom_code(content, CONFIG)
    if content.get("split_special_tokens"):
        raise CheckpointError(f"{CONFIG} says split_special_tokens, which is not served. Wanted: false")
    return {key: value for key, value in content.items() if key not in DROPPED}


def _copy(folder: Path, private: Path, settings: Mapping[str, Any]) -> None:
    (private / CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    for name in FILES:
        path = folder / name
        if path.is_file():
            with path.open("rb") as stream:
                if stream.read(len(LFS_POINTER)) == LFS_POINTER.encode():
                    raise CheckpointError(f"{name} is a Git LFS pointer, not the file: run `git lfs pull`")
            shutil.copyfile(path, private / name)
    for name in ("special_tokens_map.json", "added_tokens.json", "tokenizer.json"):
        if (private / name).is_file():
            read_json(private / name)


def _from(private: Path, config: Any, options: Mapping[str, Any]) -> Any:
    from transformers import AutoTokenizer

    config.to_json_file(private / "config.json")
    tokenizer = AutoTokenizer.from_pretrained(private, **LOCAL, **options)
    tokenizer.name_or_path = ""
    tokenizer.init_kwargs.pop("name_or_path", None)
    return tokenizer
