"""Folders for what a worker makes once and may find again: plans, measurements, compiled kernels.

A container may run as a user without a home, or with one that cannot be written to.
"""

from __future__ import annotations

import functools
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

PROJECT = "torchserve-fast-handlers"

logger = logging.getLogger(__name__)


def folder(name: str) -> Path:
    """This project's folder `name` in $XDG_CACHE_HOME or ~/.cache; never raises, and makes none there.

    If neither can be written to (nor holds that folder already), it is one in the folder for temporary files, made
    for this user alone: a plan is machine code, so nobody else may put one there.
    """
    for parent in _parents():
        path = parent / PROJECT / name
        if _is_writable(path) or _has_content(path):
            return path
    return _temporary() / name


def named(path: str) -> Path:
    """The folder that the setting planCache names. Raises ValueError for a "~" that nobody knows."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"planCache is {path}, and that home is not known; wanted: a path without ~") from None


def keep_triton_cache() -> None:
    """Have Triton compile into `folder("triton")`, unless its own folder, ~/.triton, can be written to."""
    if "TRITON_CACHE_DIR" in os.environ or "TRITON_HOME" in os.environ:
        return
    if not any(_is_writable(home / ".triton" / "cache") for home in _homes()):
        os.environ["TRITON_CACHE_DIR"] = str(folder("triton"))


def _parents() -> Iterator[Path]:
    told = Path(os.environ.get("XDG_CACHE_HOME") or ".")
    if told.is_absolute():  # the specification wants others ignored
        yield told
    yield from (home / ".cache" for home in _homes())


def _homes() -> list[Path]:
    """This user's home; none if HOME is unset and the system does not know the user."""
    try:
        return [Path.home()]
    except RuntimeError:
        return []


def _is_writable(path: Path) -> bool:
    """Whether files can be put into `path`, which may have to be made."""
    there = next((one for one in (path, *path.parents) if os.access(one, os.F_OK)), path)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _has_content(path: Path) -> bool:
    try:
        return any(path.iterdir())
    except OSError:
        return False


def _temporary() -> Path:
    """A folder that only this user can write to, the same for all of the user's workers if possible."""
    try:
        path = Path(tempfile.gettempdir()) / f"{PROJECT}-{os.getuid()}"
        if not path.is_symlink() and not path.exists():
            logger.info("no home can be written to, so %s is used; XDG_CACHE_HOME names another folder", path)
        path.mkdir(mode=0o700, exist_ok=True)
        return path if _is_mine(path) else _another()
    except OSError as error:
        logger.warning("there is no folder that can be written to, so nothing is kept: %s", error)
        return Path("/nonexistent") / PROJECT


def _is_mine(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


@functools.cache
def _another() -> Path:
    path = tempfile.mkdtemp(prefix=f"{PROJECT}-")
    logger.warning("the folder for temporary files holds one of another user by our name: %s is used", path)
    return Path(path)
