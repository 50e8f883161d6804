"""Folders for unpacked archives that do not outlive their processes, however those end.

A process that is killed cannot remove its folder. The next one that makes such a folder does: each folder is locked
by its process, and the system releases the lock when the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "unpacked-mar-"
NEW_PREFIX = f"new-{PREFIX}"  # until the folder is locked
YOUNG_S = 60.0  # that takes a moment


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a new folder that only this user can read, and remove it afterwards.

    Removes those before, whose processes were killed. Raises OSError.
    """
    remove_abandoned(Path(tempfile.gettempdir()))
    made = Path(tempfile.mkdtemp(prefix=NEW_PREFIX))
    with _locked(made):
        folder = made.rename(made.with_name(made.name.removeprefix("new-")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove this user's folders in `parent` whose processes have ended. Never raises."""
    for prefix, least_age_s in ((PREFIX, 0.0), (NEW_PREFIX, YOUNG_S)):
        for folder in parent.glob(f"{prefix}*"):
            with contextlib.suppress(OSError):  # another process removes it, or its file system has no locks
                if _is_ours(folder.lstat(), least_age_s):
                    with _locked(folder, needed=True):
                        shutil.rmtree(folder, ignore_errors=True)


def _is_ours(found: os.stat_result, least_age_s: float) -> bool:
    """Whether it is a folder of this user, and not too new."""
    is_old = time.time() - found.st_mtime >= least_age_s
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and is_old


@contextlib.contextmanager
def _locked(folder: Path, *, needed: bool = False) -> Iterator[None]:
    """Hold a folder's lock. Raises OSError if `needed` and another process holds it, or there are no locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with contextlib.nullcontext() if needed else contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
