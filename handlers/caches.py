"""Folders for what a worker makes once and can use again: plans, measurements, compiled kernels.

A container may run as a user without a home, or with a home that cannot be written to.
"""

from __future__ import annotations

import functools
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from platformdirs.unix import Unix

PROJECT = "torchserve-fast-handlers"

logger = logging.getLogger(__name__)


def folder(name: str) -> Path:
    """Return this project's folder `name`, which may not exist yet. Never raises.

    It lies in $XDG_CACHE_HOME/torchserve-fast-handlers or ~/.cache/torchserve-fast-handlers: the first of them that
    can be written to, or that holds files already. If there is none, it lies in the folder for temporary files, in a
    folder that only this user can write to: a plan is machine code, so nobody else may put one there.
    """
    for parent in _parents():
        path = parent / name
        if _is_writable(path) or _has_content(path):
            return path
    return _temporary() / name


def named(path: str) -> Path:
    """Return the folder that the setting planCache names. Raises ValueError if its "~" cannot be resolved."""
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
    """The project's cache folders by the XDG Base Directory specification, on every system, the preferred one first.

    platformdirs knows one folder; a home serves as well if $XDG_CACHE_HOME cannot be written to.
    """
    try:
        yield Unix(PROJECT).user_cache_path
    except RuntimeError:  # the user has no home that the system knows
        return
    yield from (home / ".cache" / PROJECT for home in _homes())


def _homes() -> list[Path]:
    """This user's home; none if HOME is unset and the system does not know the user."""
    try:
        return [Path.home()]
    except RuntimeError:
        return []


def _is_writable(path: Path) -> bool:
    """Whether files can be written into `path`. It need not exist if it can be created."""
    existing = next((one for one in (path, *path.parents) if os.access(one, os.F_OK)), path)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _has_content(path: Path) -> bool:
    try:
        return any(path.iterdir())
    except OSError:
        return False


def _temporary() -> Path:
    """A folder that only this user can write to, the same one for all of the user's workers if possible."""
    try:
        path = Path(tempfile.gettempdir()) / f"{PROJECT}-{os.getuid()}"
        if not path.is_symlink() and not path.exists():
            logger.info("no home can be written to, so %s is used; set XDG_CACHE_HOME to use another folder", path)
        path.mkdir(mode=0o700, exist_ok=True)
        return path if _is_private(path) else _another()
    except OSError as error:
        logger.warning("there is no folder that can be written to, so nothing is kept: %s", error)
        return Path("/nonexistent") / PROJECT


def _is_private(path: Path) -> bool:
    """Whether `path` is a folder of this user that nobody else can write to."""
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


@functools.cache
def _another() -> Path:
    path = tempfile.mkdtemp(prefix=f"{PROJECT}-")
    logger.warning(
        "the folder for temporary files has a folder of this name that is not this user's alone; %s is used instead",
        path,
    )
    return Path(path)
