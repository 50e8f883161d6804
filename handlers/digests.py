"""SHA-256 of files and texts, in hex."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from concurrent.futures import Future
from pathlib import Path

AT_ONCE = 1 << 20  # bytes

_Key = tuple[Path, int, int, int]
_found: dict[_Key, Future[str]] = {}  # also of files that a thread is still reading
_lock = threading.Lock()


def of_file(path: Path) -> str:
    """Return the digest of a file's content. A process reads a file once, unless its time or size changes.

    If a thread is reading the file already, this waits for it. Raises OSError.
    """
    key, digest, is_new = _claimed(path)
    if is_new:
        _read(key, digest)
    return digest.result()


def start(path: Path) -> None:
    """Have a thread read a file, for a later `of_file`. It does nothing if there is no such file, or no more thread.

    hashlib computes without Python's lock, so imports and a GPU's start-up go on meanwhile.
    """
    with contextlib.suppress(OSError):
        key, digest, is_new = _claimed(path)
        if is_new:
            _read_in_thread(key, digest)


def forget(folder: Path) -> None:
    """Forget the files of a folder that is removed. A process that loads many archives would keep them all."""
    inside = folder.resolve()
    with _lock:
        for key in [key for key in _found if inside in key[0].parents]:
            del _found[key]


def of_text(text: str) -> str:
    """Return the digest of the text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def _claimed(path: Path) -> tuple[_Key, Future[str], bool]:
    """Return a file's key, its digest, and whether the caller has to read it. Raises OSError."""
    found = path.stat()
    key = (path.resolve(), found.st_ino, found.st_mtime_ns, found.st_size)
    with _lock:
        is_new = key not in _found
        return key, _found.setdefault(key, Future()), is_new


def _read_in_thread(key: _Key, digest: Future[str]) -> None:
    try:
        threading.Thread(target=_read, args=(key, digest), name="digest", daemon=True).start()
    except RuntimeError:  # the process may start no more threads
        with _lock:
            del _found[key]


def _read(key: _Key, digest: Future[str]) -> None:
    """Read a file, and give its digest or its error to all who wait. After an error the next call reads it again."""
    try:
        found = hashlib.sha256()
        with key[0].open("rb") as file:
            while part := file.read(AT_ONCE):
                found.update(part)
    except BaseException as error:
        with _lock:
            _found.pop(key, None)
        digest.set_exception(error)
    else:
        digest.set_result(found.hexdigest())
