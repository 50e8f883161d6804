"""Weight files on disk or on the Hugging Face Hub -> named tensors, without running code from the files."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import huggingface_hub
import torch
from safetensors.torch import load_file

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
# Averaged weights first, as timm.models.load_state_dict does.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_CONFIGS = ("config.json", "preprocessor_config.json")
HUB_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
HUB_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


class CheckpointError(ValueError):
    """A checkpoint that cannot be served; the message says what came, what was wanted and the way out."""


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


def sha256(weights: Path) -> str:
    """SHA-256 of a weight file in hex; for an index, of the index followed by its shards in name order."""
    shards = _shards(weights) if weights.suffix == ".json" else []
    digest = hashlib.sha256()
    for path in (weights, *shards):
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def load_tensors(weights: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Read a weight file, unwrap training containers and strip wrappers' prefixes off the names.

    Returns (tensors by name, on the CPU, shapes and dtypes as stored; the prefix that was stripped).
    Where a container holds averaged and plain weights, the averaged ones are taken, as timm does.
    Raises CheckpointError for what is not a dictionary of tensors, or needs code to be unpickled.
    """
    if weights.suffix == ".json":
        return _strip_prefixes(_load_shards(weights))
    return _strip_prefixes(_as_tensors(_load(weights)))


def _load(path: Path) -> object:
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path.name} is no weight file this reads: wanted {', '.join(SUFFIXES)}")
    with path.open("rb") as stream:
        if stream.read(32).startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{path.name} is a Git LFS pointer, not the weights: run `git lfs pull`")
    if path.suffix != ".safetensors":
        return _unpickle(path)
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, OSError, and KeyError for dtypes torch lacks
        raise CheckpointError(f"{path.name} is not a readable safetensors file ({error})") from error


def _unpickle(path: Path) -> object:
    zipped = zipfile.is_zipfile(path)
    if zipped and _is_program(path):
        raise CheckpointError(
            f"{path.name} is a TorchScript or exported program, wanted a state dict. Where you trust the "
            f'file: torch.save(torch.jit.load("{path.name}").state_dict(), "weights.pth")'
        )
    try:
        # mmap keeps a training checkpoint's optimizer state out of memory; only zip archives can be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_needs_code(path, error, zipped)) from error
    except Exception as error:  # a truncated or foreign file fails in many ways
        raise CheckpointError(
            f"{path.name} is not a readable PyTorch file ({type(error).__name__}: {error}): "
            "truncated, or not written by torch.save?"
        ) from error


def _is_program(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).name for name in archive.namelist()}
    except zipfile.BadZipFile:
        return False
    return "constants.pkl" in names or "data.pkl" not in names


def _needs_code(path: Path, error: Exception, zipped: bool) -> str:
    names = _unsafe_globals(path) if zipped else []
    names = names or re.findall(r"GLOBAL ([\w.]+)", str(error))
    if not names:
        return f"{path.name} is not a readable PyTorch file ({str(error).splitlines()[0]})"
    return (
        f"{path.name} holds more than tensors: unpickling it would call {listed(names)}, which could run any "
        "code, so it was not loaded. Wanted: a state dict (torchvision's own .pth files are). Where you "
        f'trust the file, re-save what is needed: m = torch.load("{path.name}", weights_only=False), then '
        'torch.save(m.state_dict(), "weights.pth") for a whole model, '
        'torch.save(m["model"], "weights.pth") for a training checkpoint'
    )


def _unsafe_globals(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it disassembles the pickle, and gives up on what no torch.save writes
        return []


def _as_tensors(content: object) -> dict[str, torch.Tensor]:
    # Bounded, as a pickle can hold a dictionary that contains itself.
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        held = content
        content = next((held[key] for key in CONTAINERS if isinstance(held.get(key), Mapping)), held)
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"the file holds {_described(content)}, wanted a state dict (names to tensors)")
    others = [f"{name} ({type(value).__name__})" for name, value in content.items() if not _named(name, value)]
    if others:
        raise CheckpointError(
            f"not a state dict: among its {len(content)} entries these are not tensors: {listed(others)}. "
            "Save the float model's state_dict() alone, or under one of the keys " + ", ".join(CONTAINERS)
        )
    return dict(cast("Mapping[str, torch.Tensor]", content))


def _named(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def _described(content: object) -> str:
    return "an empty dictionary" if content == {} else f"a {type(content).__name__}"


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index.name} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index.name} names shards outside its folder: {listed(outside)}")
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise CheckpointError(f"{index.name} names shards that are not in the folder: {listed(absent)}")
    return [index.parent / name for name in names]


def _load_shards(index: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for shard in _shards(index):
        tensors.update(_as_tensors(_load(shard)))
    return tensors


def _strip_prefixes(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    # torch.optim.swa_utils.AveragedModel counts its updates beside the weights.
    tensors.pop("n_averaged", None)
    stripped = ""
    while prefix := next((p for p in PREFIXES if tensors and all(n.startswith(p) for n in tensors)), ""):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        stripped += prefix
    return tensors, stripped
