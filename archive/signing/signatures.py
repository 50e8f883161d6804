"""Signatures beside archives: NAME.mar.minisig is over the bytes of NAME.mar.

The layout is that of https://jedisct1.github.io/minisign/#signature-format, prehashed: Ed25519 signs the BLAKE2b-512
of the file, so that a file of any size is read once, in pieces. A second signature covers the first one and the
trusted comment, which holds the time and the archive's name.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature

from archive import inspection
from archive.signing import keys
from archive.signing.errors import SigningError
from archive.signing.keys import PrivateKey, PublicKey

SUFFIX = inspection.SIGNATURE
PREHASHED, LEGACY = b"ED", b"Ed"
UNTRUSTED, TRUSTED = "untrusted comment: ", "trusted comment: "
NO_SIGNATURE = "is no signature; wanted: four lines as minisign writes them"
PIECE = 1 << 20  # bytes


@dataclass(frozen=True)
class Signature:
    """What a signature's file holds.

    Args:
        key_id: of the key that made it.
        of_content: the signature of the archive, 64 bytes.
        comment: the trusted comment.
        of_comment: the signature of `of_content` and the comment, 64 bytes.
    """

    key_id: bytes
    of_content: bytes
    comment: str
    of_comment: bytes


def path_of(archive: Path) -> Path:
    """Return the file that holds the archive's signature."""
    return archive.with_name(archive.name + SUFFIX)


def sign(archive: Path, key: PrivateKey) -> Path:
    """Write the archive's signature beside it, in one step, and return its path. Raises OSError."""
    of_content = key.key.sign(_digest(archive))
    comment = f"timestamp:{time.time():.0f}\tfile:{archive.name}\thashed"
    of_comment = key.key.sign(of_content + comment.encode())
    lines = [
        f"{UNTRUSTED}signature of the key {key.public.name}",
        base64.b64encode(PREHASHED + key.id + of_content).decode(),
        TRUSTED + comment,
        base64.b64encode(of_comment).decode(),
    ]
    target = path_of(archive)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return partial.replace(target)


def verify(archive: Path, key: PublicKey) -> str:
    """Return the trusted comment of the archive's signature.

    Raises SigningError if there is no signature, if another key made it, if the archive is not what was signed, or if
    it was signed under another file name.
    """
    if not archive.is_file():
        raise SigningError(f"there is no file {archive}")
    signature = read(path_of(archive))
    if signature.key_id != key.id:
        made_by = PublicKey(signature.key_id, key.key).name
        raise SigningError(
            f"{archive} was signed by the key {made_by}, and {key.name} is wanted; sign it with the wanted key: "
            f"scripts/package sign {archive} --key KEY"
        )
    try:
        key.key.verify(signature.of_content, _digest(archive))
    except InvalidSignature:
        raise SigningError(
            f"{archive} is not what was signed: it or its signature has changed. Put both back as they were, or sign "
            f"what is there if you trust it: scripts/package sign {archive} --key KEY"
        ) from None
    _check_comment(archive, key, signature)
    return signature.comment


def read(path: Path) -> Signature:
    """Return what a signature's file holds. Raises SigningError, also if there is none."""
    if not path.is_file():
        archive = path.with_name(path.name.removesuffix(SUFFIX))
        raise SigningError(
            f"{archive} is not signed: there is no {path.name} beside it; scripts/package sign {archive} --key KEY "
            "makes it"
        )
    lines = keys.read_lines(path, "signature")
    if len(lines) != 4 or not lines[0].startswith(UNTRUSTED) or not lines[2].startswith(TRUSTED):
        raise SigningError(f"{path} {NO_SIGNATURE}")
    content, of_comment = keys.decoded(lines[1]), keys.decoded(lines[3])
    if content[:2] == LEGACY:
        raise SigningError(f"{path} is a signature of the old form; sign again with scripts/package or minisign 0.11")
    if (content[:2], len(content), len(of_comment)) != (PREHASHED, 74, 64):
        raise SigningError(f"{path} {NO_SIGNATURE}")
    return Signature(content[2:10], content[10:], lines[2].removeprefix(TRUSTED), of_comment)


def _check_comment(archive: Path, key: PublicKey, signature: Signature) -> None:
    """Raise SigningError if the trusted comment was changed, or names another file."""
    try:
        key.key.verify(signature.of_comment, signature.of_content + signature.comment.encode())
    except InvalidSignature:
        raise SigningError(
            f"{path_of(archive)} was changed: its trusted comment is not what was signed; sign again: "
            f"scripts/package sign {archive} --key KEY"
        ) from None
    # Without this, whoever can write the model store could give one model the archive of another.
    named = re.search(r"(?:^|\t)file:([^\t]*)", signature.comment)
    if named and Path(named[1]).name != archive.name:
        raise SigningError(
            f"{archive} was signed under the name {named[1]}; give it that name again, or sign it under the new one: "
            f"scripts/package sign {archive} --key KEY"
        )


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.digest()
