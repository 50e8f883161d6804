"""Where the archives of a command line lie. A file name alone may lie in model_store/. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from argument_types import checked
from server.paths import MODEL_STORE


def split(word: str) -> tuple[str, str]:
    """Return name and file of "NAME=FILE.mar", with the name "" for "FILE.mar". A "=" behind a "/" is the path's."""
    name, equals, file = word.partition("=")
    return (name, file) if equals and name and "/" not in name else ("", word)


def located(file: str) -> str:
    """Return the path of an archive: as given; or in model_store/, if it is a name that is only there."""
    in_store = MODEL_STORE / file
    is_name = Path(file).name == file
    return str(in_store) if is_name and not Path(file).exists() and in_store.is_file() else file


def is_url(file: str) -> bool:
    """Return whether an archive is named by a URL."""
    return "://" in file


@checked
def existing(file: str) -> Path:
    """A type for argparse: the path of an archive, or of a folder that one was unpacked into, that is there."""
    found = Path(located(file))
    if not found.exists():
        raise ValueError(absent(file))
    return found


@checked
def path(file: str) -> Path:
    """A type for argparse: the path of an archive, whether it is there or not."""
    return Path(located(file))


def absent(file: str) -> str:
    """Return what to tell about an archive that is nowhere."""
    in_store = sorted(path.name for path in MODEL_STORE.glob("*.mar")) if MODEL_STORE.is_dir() else []
    there = f"model_store/ has {', '.join(in_store)}" if in_store else f"{MODEL_STORE} has no archive"
    return f"{file} does not exist; scripts/package makes archives; {there}"
