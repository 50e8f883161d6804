"""What `keygen`, `sign`, `verify --key` and `verify-store` do, and what they print."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from archive import inspection
from archive.inspection import ArchiveError
from archive.options import SigningOptions
from archive.signing import keys, passwords, signatures, stores
from archive.signing.errors import SigningError
from archive.signing.keys import PrivateKey


def run(options: SigningOptions) -> list[str]:
    """Run the command and return its lines for the terminal. Raises SigningError, ArchiveError or OSError."""
    return COMMANDS[options.command](options)


def open_key(path: Path) -> PrivateKey:
    """Return the private key of a file; asks for its password if it has one. Raises SigningError."""
    return passwords.open_key(path)


def keep_signed(archive: Path, key: PrivateKey) -> list[str]:
    """Sign an archive, unless it is signed by this key. Returns what was done, for the terminal."""
    try:
        signatures.verify(archive, key.public)
    except SigningError:
        return [f"{signatures.sign(archive, key)}: signed by the key {key.public.name}"]
    return []


def _keygen(options: SigningOptions) -> list[str]:
    password = passwords.new_password() if options.password else None
    private, public = (Path(f"{options.path}{suffix}") for suffix in (".key", ".pub"))
    key = keys.generate()
    keys.write(key, private, public, password)
    how = "encrypted" if password else "NOT encrypted"
    return [
        f"{private}: the private key, {how}; it signs, so keep it to yourself",
        f"{public}: the public key {key.public.name}; whoever checks archives needs it: {key.public.line}",
    ]


def _sign(options: SigningOptions) -> list[str]:
    notes = _notes(options.path)
    key = passwords.open_key(Path(options.key))
    return [*notes, f"{signatures.sign(options.path, key)}: {options.path} signed by the key {key.public.name}"]


def _notes(archive: Path) -> list[str]:
    """What to know before signing: settings may be edited, and another tool's archives may be served too.

    Raises SigningError if the file is no archive.
    """
    if not zipfile.is_zipfile(archive):
        raise SigningError(f"{archive} is no model archive; wanted: a .mar file")
    try:
        inspection.verify(archive)
    except ArchiveError as error:
        return [f"note: {error}. It is signed as it is"]
    return []


def _verify(options: SigningOptions) -> list[str]:
    comment = stores.check_archive(options.path, options.key)
    name = keys.read_public(options.key).name
    digest = inspection.verify(options.path)
    return [
        f"{options.path}: signed by the key {name} ({' '.join(comment.split())})",
        f"{options.path}: unchanged since it was packaged, {digest}",
    ]


def _verify_store(options: SigningOptions) -> list[str]:
    archives = stores.check_store(options.path, options.key)
    name = keys.read_public(options.key).name
    return [f"{options.path}: all {len(archives)} archives are signed by the key {name}"]


COMMANDS: dict[str, Callable[[SigningOptions], list[str]]] = {
    "keygen": _keygen,
    "sign": _sign,
    "verify": _verify,
    "verify-store": _verify_store,
}
