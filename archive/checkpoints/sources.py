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
LFS = "version https://git-lfs"  # how such a pointer begins
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
    "adapter_config.json",  # to refuse it
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be served; the message says what came, what was wanted and the way out."""


def refuse_custom_code(content: Mapping[str, object], file: str) -> None:
    """Raises CheckpointError where a config names classes of the checkpoint's own."""
    if content.get("auto_map"):
        raise CheckpointError(custom_code(content["auto_map"], file))


def custom_code(named: object, file: str) -> str:
    """The message for a config that names classes of the checkpoint's own."""
    return (
        f"{file} names code of its own to run (auto_map: {named}), which packaging and workers "
        "never do (trust_remote_code). Wanted: an architecture of transformers itself"
    )


def inside(folder: Path, named: object, file: str) -> Path:
    """The path that `file` names within `folder`. Raises CheckpointError where it leads out of it.

    Files may be links, as in the Hub's snapshots; the folders on the way may not lead elsewhere.
    """
    if not isinstance(named, str):
        raise CheckpointError(f"{file} gives {named!r} for a path; wanted: a folder's name")
    path = folder / named
    if Path(named).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{file} names {named!r}, which is outside the folder; nothing is read there")
    return path


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
    content = read_any_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, wanted a JSON object")
    return content


def read_any_json(path: Path) -> object:
    """What the JSON file holds. Raises CheckpointError, with the file's name, where it is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.startswith(LFS):
            raise CheckpointError(f"{path.name} is a Git LFS pointer, not the file: run `git lfs pull`")
        content: object = json.loads(text)
    except RecursionError:
        raise CheckpointError(f"{path.name} is nested too deeply to be read") from None
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path.name} is not JSON ({error})") from error
    return content
