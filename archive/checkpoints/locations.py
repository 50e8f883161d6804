"""Finds a checkpoint: a file or folder on this machine, or a snapshot from the Hugging Face Hub.

Imports nothing heavy, so that packaging learns quickly whether an archive is up to date.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from archive.checkpoints.errors import CheckpointError
from handlers.misfits import listed

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
HUB_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
HUB_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")
# sentence-transformers' names for one file, in the order in which it looks for them.
SENTENCE_CONFIGS = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
SENTENCE_PROMPTS = "config_sentence_transformers.json"
# Names under which models of the sentencepiece library are kept.
SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "sentencepiece.model", "tokenizer.model")
HUB_MODULE = ("config.json", "model.safetensors", "pytorch_model.bin")
# What a text encoder's folder may hold beside config.json and its weights.
HUB_TEXT = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    *SENTENCEPIECE,
    "modules.json",
    *SENTENCE_CONFIGS,
    SENTENCE_PROMPTS,
    "*_Pooling/config.json",
    "*_Normalize/config.json",
    "*_SpladePooling/config.json",
    "*_Dropout/config.json",
    *(f"*_{kind}*/{name}" for kind in ("Dense", "LayerNorm") for name in HUB_MODULE),
    # Older sentence-transformers kept the transformer in a subfolder, such as 0_Transformer.
    *(f"0_*/{name}" for name in ("*.json", "*.txt", "*.model", "model.safetensors", "pytorch_model.bin")),
    "adapter_config.json",  # which is refused
)


def locate(source: str | Path, revision: str | None = None, extra: Iterable[str] = ()) -> Path:
    """Return the local file or folder that the user gave, else download a Hub snapshot and return its folder.

    Args:
        source: a path, or a Hugging Face Hub id.
        revision: branch, tag or commit; for a Hub id only.
        extra: names or patterns of files to download, in addition to weights and configs.

    Raises:
        CheckpointError: if there is neither, or a revision was given for a local path.
    """
    path = Path(source).expanduser()
    if path.exists():
        if revision is not None:
            raise CheckpointError(f"revision {revision!r} was given, but this is a local path: leave it out")
        return path
    if isinstance(source, Path) or not HUB_ID.fullmatch(source) or path.suffix in SUFFIXES:
        raise CheckpointError(
            f"there is no such file or folder (looked for {path.absolute()}). Wanted: a folder, a weight "
            f"file ({', '.join(SUFFIXES)}) or a Hugging Face Hub id such as microsoft/resnet-101"
        )
    return _snapshot(source, revision, (*HUB_CONFIGS, *extra))


def _snapshot(model_id: str, revision: str | None, configs: tuple[str, ...]) -> Path:
    folder = _download(model_id, revision, (*configs, *HUB_SAFETENSORS))
    if not any((folder / name).exists() for name in WEIGHT_FILES):
        folder = _download(model_id, revision, (*configs, *HUB_PICKLES))
    return folder


def _download(model_id: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(model_id, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the Hub client's own errors, its HTTP library's and the file system's
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        pinned = f" --revision {revision}" if revision else ""
        raise CheckpointError(
            "there is no such file or folder here, and as a Hugging Face Hub id it could not be fetched "
            f"({type(error).__name__}: {reason}). If a path was meant: none exists, check its spelling. "
            "If a Hub id was meant: check id and revision, and run `hf auth login` if it is private. "
            f"Without a network: run `hf download {model_id}{pinned} --local-dir FOLDER` on a machine that "
            "has one, and give the folder"
        ) from error


def weight_file(folder: Path) -> Path:
    """Return the file in `folder` that holds the weights: safetensors before pickles, and for shards their index.

    Raises CheckpointError, with what the folder holds, if there is none.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    held = sorted(entry.name for entry in folder.iterdir())
    raise CheckpointError(
        f"the folder has none of {', '.join(WEIGHT_FILES)}; it holds {listed(held) or 'nothing'}. "
        "Weights under another name are read when the file itself is given"
    )
