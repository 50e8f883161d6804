"""Reads a checkpoint's JSON files, and refuses those that name code or paths outside the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from archive.checkpoints.errors import CheckpointError

LFS_POINTER = "version https://git-lfs"  # how a Git LFS pointer begins, which lies in place of a file not pulled


def read_json(path: Path) -> dict[str, object]:
    """Return the JSON object in the file. Raises CheckpointError if it is no JSON, or not an object."""
    content = read_any_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, wanted a JSON object")
    return content


def read_any_json(path: Path) -> object:
    """Return what the JSON file holds. Raises CheckpointError, with the file's name, if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.startswith(LFS_POINTER):
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


def refuse_custom_code(content: Mapping[str, object], file: str) -> None:
    """Raise CheckpointError if the file's content names classes of the checkpoint's own (auto_map)."""
    if content.get("auto_map"):
        raise CheckpointError(custom_code_message(content["auto_map"], file))


def custom_code_message(named: object, file: str) -> str:
    """Return the message for a file that names classes of the checkpoint's own. named: its auto_map."""
    return (
        f"{file} names code of its own to run (auto_map: {named}), which packaging and workers "
        "never do (trust_remote_code). Wanted: an architecture of transformers itself"
    )


def path_inside(folder: Path, named: object, file: str) -> Path:
    """Return the path that `file` names within `folder`. Raises CheckpointError if it leads out of the folder.

    Files may be links, as in the Hub's snapshots. The folders on the way may not lead elsewhere.
    """
    if not isinstance(named, str):
        raise CheckpointError(f"{file} gives {named!r} for a path; wanted: a folder's name")
    path = folder / named
    if Path(named).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{file} names {named!r}, which is outside the folder; nothing is read there")
    return path
