"""SHA-256 of files and texts, in hex."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


def of_file(path: Path) -> str:
    """Return the digest of a file's content. A process reads a file once, unless its time or size changes."""
    found = path.stat()
    return _of_file(path, found.st_mtime_ns, found.st_size)


def of_text(text: str) -> str:
    """Return the digest of the text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _of_file(path: Path, mtime_ns: int, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
