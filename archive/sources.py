"""Where a checkpoint lies: a file or folder here, or a snapshot from the Hugging Face Hub.

Imports nothing heavy, so that asking whether an archive is up to date is quick.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

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
# What a text encoder's folder may hold beside config.json and its weights.
HUB_TEXT = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "modules.json",
    *SENTENCE_CONFIGS,
    SENTENCE_PROMPTS,
    "*_Pooling/config.json",
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be served; the message says what came, what was wanted and the way out."""


def refuse_custom_code(content: Mapping[str, object], file: str) -> None:
    """Raises CheckpointError where a config names classes of the checkpoint's own."""
    if content.get("auto_map"):
        raise CheckpointError(
            f"{file} names code of its own to run (auto_map: {content['auto_map']}), which packaging and workers "
            "never do (trust_remote_code). Wanted: an architecture of transformers itself"
        )


def listed(items: Iterable[str], limit: int = 20) -> str:
    """Join the items with commas; past `limit` of them, the rest is a count."""
    every = list(items)
    rest = f", ... ({len(every)} in all)" if len(every) > limit else ""
    return ", ".join(every[:limit]) + rest


def locate(source: str | Path, revision: str | None = None, extra: Iterable[str] = ()) -> Path:
    """A path that exists for what the user gave: the local file or folder, else the downloaded Hub snapshot.

    extra: names or patterns of files that a snapshot shall hold beside weights and configs.

    Raises CheckpointError where there is neither, or where a revision is asked of a local path.
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
            "If a Hub id was meant: check id and revision, and run `hf auth login` where it is private. "
            f"Without a network: run `hf download {model_id}{pinned} --local-dir FOLDER` on a machine that "
            "has one, and give the folder"
        ) from error


def weight_file(folder: Path) -> Path:
    """The file in `folder` that holds the weights, safetensors before pickles; for shards, their index."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    held = sorted(entry.name for entry in folder.iterdir())
    raise CheckpointError(
        f"the folder has none of {', '.join(WEIGHT_FILES)}; it holds {listed(held) or 'nothing'}. "
        "Weights under another name are read when the file itself is given"
    )


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in `path`. Raises CheckpointError where it is no JSON, or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path.name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, wanted a JSON object")
    return content
