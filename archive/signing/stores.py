"""Whether all that TorchServe could load from a model store is signed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from archive.signing import keys, signatures
from archive.signing.errors import SigningError
from archive.signing.keys import PublicKey


def check_archive(archive: Path, verify_key: str) -> str:
    """Return the trusted comment of an archive's signature.

    Args:
        archive: the .mar file, as it lies in the model store.
        verify_key: the public key's file, or the key itself in one line.

    Raises:
        SigningError: if the archive is unsigned, signed by another key or under another name, or changed.
    """
    return signatures.verify(archive, keys.read_public(verify_key))


def check_store(store: Path, verify_key: str) -> list[Path]:
    """Return all archives of a model store; each is signed.

    TorchServe loads any file of the store that is an archive, whatever its name, and unpacked folders too. So every
    file counts, hidden ones and those in folders as well.

    Args: as of `check_archive`.

    Raises:
        SigningError: with a line per file that is not signed; also if the store is not there.
    """
    key = keys.read_public(verify_key)
    if not store.is_dir():
        raise SigningError(f"there is no folder {store}")
    files, problems = list(_loadable(store)), []
    for archive in files:
        try:
            _check(archive, key)
        except (SigningError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise SigningError("\n".join([f"{len(problems)} of {len(files)} files may not be loaded:", *problems]))
    return [path for path in files if not path.name.endswith(signatures.SUFFIX)]


def _check(path: Path, key: PublicKey) -> None:
    if path.name.endswith(signatures.SUFFIX):
        signatures.read(path)  # an archive under this name would be loaded as well
    else:
        signatures.verify(path, key)


def _loadable(store: Path) -> Iterator[Path]:
    """All but folders. A link to a folder is returned, and refused: what lies there is not seen here."""
    return (path for path in sorted(store.rglob("*")) if path.is_symlink() or not path.is_dir())
