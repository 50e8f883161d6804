"""Where the password of a private key comes from: an environment variable, or whoever sits at the terminal."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from archive.signing import keys
from archive.signing.errors import SigningError
from archive.signing.keys import PrivateKey

VARIABLE = "SIGNING_PASSWORD"


def open_key(path: Path) -> PrivateKey:
    """Return the private key of a file; asks for its password if it has one. Raises SigningError."""
    return keys.read_private(path, lambda: _ask(f"password of {path}: "))


def new_password() -> bytes:
    """Return the password for a new key, asked for twice. Raises SigningError if the two differ, or are empty."""
    password = _ask("password of the new key: ")
    if not password:
        raise SigningError("an empty password protects nothing; --no-password says that none is wanted")
    if VARIABLE not in os.environ and _ask("the same again: ") != password:
        raise SigningError("the two passwords differ; nothing was written")
    return password


def _ask(prompt: str) -> bytes:
    if VARIABLE in os.environ:
        return os.environ[VARIABLE].encode()
    if not sys.stdin.isatty():
        raise SigningError(
            f"a password is wanted, and there is no terminal to ask at; {VARIABLE} in the environment gives it"
        )
    return getpass.getpass(prompt).encode()
