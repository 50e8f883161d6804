"""Key files of minisign: Ed25519 keys with an id, the private one encrypted with a password.

The layouts are those of https://jedisct1.github.io/minisign/#secret-key-format, read on 2026-11-26. All numbers are
little-endian.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from archive.signing.errors import SigningError

ALGORITHM, SCRYPT, PLAIN, BLAKE2B = b"Ed", b"Sc", b"\0\0", b"B2"
PUBLIC_BYTES, PRIVATE_BYTES = 42, 158
SECRET_BYTES = 104  # of a private key: its id, the key and the public key, and a checksum
# Of new keys: scrypt with N = 2**17, r = 8, p = 1, which takes 128 MiB. Source: OWASP's Password Storage Cheat Sheet.
OPERATIONS, MEMORY = 1 << 22, 1 << 27
MOST_MEMORY = 1 << 30  # what minisign's own keys take
LONGEST_FILE = 4096  # bytes; key files and signatures have some hundred


@dataclass(frozen=True)
class PublicKey:
    """What signatures are checked with. id: 8 bytes that signatures name."""

    id: bytes
    key: Ed25519PublicKey

    @property
    def name(self) -> str:
        """The id, as minisign prints it."""
        return self.id[::-1].hex().upper()

    @property
    def line(self) -> str:
        """The key in one line, as minisign's -P and the second line of a public key file have it."""
        return base64.b64encode(ALGORITHM + self.id + self.key.public_bytes_raw()).decode()


@dataclass(frozen=True)
class PrivateKey:
    """What signs. id: that of its public key."""

    id: bytes
    key: Ed25519PrivateKey

    @property
    def public(self) -> PublicKey:
        return PublicKey(self.id, self.key.public_key())


def generate() -> PrivateKey:
    """Return a new key."""
    return PrivateKey(secrets.token_bytes(8), Ed25519PrivateKey.generate())


def read_public(given: str) -> PublicKey:
    """Return a public key. given: its file's path, or the key itself, in one line. Raises SigningError."""
    path = Path(given)
    line = second_line(path, "public key") if path.is_file() else given.strip()
    content = decoded(line)
    if content[:2] == ALGORITHM and len(content) == PRIVATE_BYTES:
        raise SigningError(f"{given} is a private key; wanted: the public one, such as FILE.pub")
    if content[:2] != ALGORITHM or len(content) != PUBLIC_BYTES:
        raise SigningError(
            f"{given} is neither the file of a public key nor a public key; wanted: what `scripts/package keygen` or "
            "`minisign -G` wrote, or its second line, which begins with RW"
        )
    return PublicKey(content[2:10], Ed25519PublicKey.from_public_bytes(content[10:]))


def write(key: PrivateKey, private: Path, public: Path, password: bytes | None) -> None:
    """Write both files. The private one is for its owner only; it is encrypted unless the password is None.

    Raises SigningError if one of them is there.
    """
    for path in (private, public):
        if path.exists():
            raise SigningError(
                f"{path} is there already, and a key that is lost cannot be made again; name another file"
            )
    comment = f"minisign {'encrypted ' if password is not None else ''}secret key {key.public.name}"
    _create(private, f"untrusted comment: {comment}\n{_encrypted(key, password)}\n", 0o600)
    _create(public, f"untrusted comment: minisign public key {key.public.name}\n{key.public.line}\n", 0o644)


def read_private(path: Path, ask: Callable[[], bytes]) -> PrivateKey:
    """Return a private key. The file is read once, so it may be a pipe.

    Args:
        path: the key's file.
        ask: returns the password; it is called only if the key is encrypted.

    Raises:
        SigningError: if the file is no private key, or the password is wrong.
    """
    content = _private_bytes(path)
    encrypted = content[2:4] == SCRYPT
    secret = content[54:]
    if encrypted:
        operations, memory = (int.from_bytes(content[start : start + 8], "little") for start in (38, 46))
        secret = _mixed(secret, _stream(path, ask(), content[6:38], operations, memory))
    identity, seed, public, checksum = secret[:8], secret[8:40], secret[40:72], secret[72:]
    if encrypted and checksum != _checksum(secret[:72]):
        raise SigningError(f"the password does not open {path}")
    key = PrivateKey(identity, Ed25519PrivateKey.from_private_bytes(seed))
    if key.public.key.public_bytes_raw() != public:
        raise SigningError(f"{path} is damaged: its two halves do not belong together; wanted: a copy that is whole")
    return key


def decoded(line: str) -> bytes:
    """Return the bytes of a line in base64; none if it is not base64."""
    try:
        return base64.b64decode(line, validate=True)
    except ValueError:  # binascii.Error, and other characters than those of ASCII
        return b""


def second_line(path: Path, what: str) -> str:
    """Return the second line of a key's or signature's file, the first of which is a comment. Raises SigningError."""
    lines = read_lines(path, what)
    return lines[1].strip() if len(lines) > 1 else ""


def read_lines(path: Path, what: str) -> list[str]:
    """Return the lines of a small text file. what: it is, for the message. Raises SigningError if there is none."""
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_FILE + 1)
        if len(content) > LONGEST_FILE:
            raise ValueError
        return content.decode("utf-8").splitlines()
    except OSError as error:
        raise SigningError(f"the {what} {path} cannot be read: {error.strerror}") from None
    except ValueError:  # UnicodeDecodeError is one too
        raise SigningError(f"{path} is no {what}: it is not a few lines of text") from None


def _private_bytes(path: Path) -> bytes:
    content = decoded(second_line(path, "private key"))
    if content[:2] == ALGORITHM and len(content) == PUBLIC_BYTES:
        raise SigningError(f"{path} is a public key, which cannot sign; wanted: the private one, such as FILE.key")
    known = content[2:4] in (SCRYPT, PLAIN) and content[4:6] == BLAKE2B
    if content[:2] != ALGORITHM or len(content) != PRIVATE_BYTES or not known:
        raise SigningError(
            f"{path} is no private key; wanted: a file that `scripts/package keygen` or `minisign -G` wrote"
        )
    return content


def _encrypted(key: PrivateKey, password: bytes | None) -> str:
    secret = key.id + key.key.private_bytes_raw() + key.public.key.public_bytes_raw()
    secret += _checksum(secret)
    kdf, salt, operations, memory = PLAIN, bytes(32), 0, 0
    if password is not None:
        kdf, salt, operations, memory = SCRYPT, secrets.token_bytes(32), OPERATIONS, MEMORY
        secret = _mixed(secret, _stream(Path(), password, salt, operations, memory))
    limits = operations.to_bytes(8, "little") + memory.to_bytes(8, "little")
    return base64.b64encode(ALGORITHM + kdf + BLAKE2B + salt + limits + secret).decode()


def _stream(path: Path, password: bytes, salt: bytes, operations: int, memory: int) -> bytes:
    """Return the bytes that a private key is mixed with."""
    if not 0 < memory <= MOST_MEMORY:
        raise SigningError(f"{path} asks for {memory} bytes of memory to be opened; wanted: at most {MOST_MEMORY}")
    n, r, p = scrypt_parameters(operations, memory)
    try:
        return Scrypt(salt=salt, length=SECRET_BYTES, n=n, r=r, p=p).derive(password)
    except MemoryError:
        raise SigningError(
            f"{path} wants {memory >> 20} MiB of memory to be opened, and they are not there"
        ) from None


def scrypt_parameters(operations: int, memory: int) -> tuple[int, int, int]:
    """Return scrypt's N, r and p for libsodium's two limits.

    Source: `pickparams` in crypto_pwhash_scryptsalsa208sha256 of libsodium 1.0.18.
    """
    operations, r = max(operations, 32768), 8
    if operations < memory // 32:
        return _power_above(operations // (r * 4) // 2), r, 1
    n = _power_above(memory // (r * 128) // 2)
    return n, r, min(operations // 4 // n, 0x3FFFFFFF) // r


def _power_above(number: int) -> int:
    """Return the smallest power of two, from 2 on, that is larger than the number."""
    return max(2, 1 << number.bit_length())


def _checksum(secret: bytes) -> bytes:
    return hashlib.blake2b(ALGORITHM + secret, digest_size=32).digest()


def _mixed(content: bytes, stream: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(content, stream, strict=True))


def _create(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
