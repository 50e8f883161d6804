"""SHA-256 of several files and of streams, in hex. They are read in pieces of 1 MiB.

handlers/digests.py has those of one file and of a text, which workers need too.
"""

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


def _update(digest: hashlib._Hash, stream: IO[bytes]) -> None:
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
