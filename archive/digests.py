"""SHA-256 of files, streams and texts, in hex. Files are read in pieces of 1 MiB."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO


def of_files(*paths: Path) -> str:
    """Return the digest of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            _update(digest, stream)
    return digest.hexdigest()


def of_stream(stream: IO[bytes]) -> str:
    """Return the digest of what is left in the stream."""
    digest = hashlib.sha256()
    _update(digest, stream)
    return digest.hexdigest()


def of_text(text: str) -> str:
    """Return the digest of the text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def _update(digest: hashlib._Hash, stream: IO[bytes]) -> None:
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
