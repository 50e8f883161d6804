"""Reads weight files into named tensors without running code from them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file

from archive import digests
from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.json_files import LFS_POINTER, read_json
from archive.checkpoints.locations import SUFFIXES
from handlers.misfits import listed

# Averaged weights first, as timm.models.load_state_dict does.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.", "timm_model.")


def sha256(weights: Path) -> str:
    """Return the SHA-256 of a weight file in hex; for an index, of the index and its shards in name order."""
    shards = _shards(weights) if weights.suffix == ".json" else []
    return digests.of_files(weights, *shards)


def load_tensors(weights: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Read a weight file, unwrap training containers, and strip wrappers' prefixes off the names.

    If a container holds averaged (EMA) and plain weights, the averaged ones are taken, as timm does.

    Args:
        weights: a safetensors or PyTorch file, or the index of a sharded checkpoint.

    Returns:
        The tensors by name, on the CPU, with shapes and dtypes as stored; and the prefix that was stripped.

    Raises:
        CheckpointError: if the file holds no dictionary of tensors, or needs code to be unpickled.
    """
    if weights.suffix == ".json":
        return _strip_prefixes(_load_shards(weights))
    return _strip_prefixes(_as_tensors(_load(weights)))


def _load(path: Path) -> object:
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path.name} is no weight file this reads: wanted {', '.join(SUFFIXES)}")
    with path.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER.encode():
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
            f"{path.name} is a TorchScript or exported program, wanted a state dict. If you trust the "
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
        "code, so it was not loaded. Wanted: a state dict (torchvision's own .pth files are). If you "
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
        content = next((held[key] for key in CONTAINERS if held.get(key) and isinstance(held[key], Mapping)), held)
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
