"""Where an archive lies, and what it says of itself before it is loaded."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import filelock
import yaml

from handlers import caches
from handlers.hosts import contents
from handlers.hosts.contents import ArchiveError, Contents
from ray_host.options import DIGEST, ModelOptions

MOST_BYTES_READ = 16 << 20  # of each file below; handlers/hosts/unpacking.py has the same bound


@dataclass(frozen=True)
class Head:
    """What an archive says of itself. Nothing is checked before it is loaded, except that its parts agree.

    Args:
        digest: the content digest.
        batch_size: requests that are answered together.
        contents: all that it says.
    """

    name: str
    version: str
    digest: str
    batch_size: int
    contents: Contents


def head_of(model: ModelOptions) -> Head:
    """Return what a model's archive says of itself. Raises ArchiveError, also for another digest than wanted."""
    told = head(local(model.archive, model.digest))
    if model.digest not in (None, told.digest):
        raise ArchiveError(f"{_shown(model.archive)} has the digest {told.digest}, and {model.digest} is wanted")
    return told


def head(mar: Path) -> Head:
    """Return what a .mar says of itself. Raises ArchiveError."""
    try:
        with zipfile.ZipFile(mar) as archive:
            provenance, manifest, config = (
                _start(archive, name) for name in (contents.PROVENANCE, contents.MANIFEST, contents.CONFIG)
            )
        listed = contents.parsed(provenance, manifest, str(mar))
        batch_size = int((yaml.safe_load(config) or {}).get("batchSize") or 1)
    except FileNotFoundError:
        raise ArchiveError(f"there is no {mar} on this machine") from None
    except ArchiveError:
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, AttributeError, TypeError, yaml.YAMLError, OSError) as error:
        raise ArchiveError(f"{mar} is no model archive, or is damaged: {error}") from None
    return Head(listed.name, str(listed.provenance["version"]), listed.digest, max(1, batch_size), listed)


def local(archive: str, digest: str | None) -> Path:
    """Return the archive as a file on this machine; one at a URL is downloaded once per machine and digest.

    Args:
        archive: a path; a URL of file:, or of any other scheme that fsspec and its plug-ins know, as s3:.
        digest: the content digest. It is the name under which a download is kept; `load_archive` checks it.

    Raises ArchiveError for a URL that cannot be read, or one without a digest.
    """
    scheme = urlsplit(archive).scheme
    if scheme == "file":
        return Path(unquote(urlsplit(archive).path))
    if "://" not in archive:
        return Path(archive)
    if digest is None or not DIGEST.fullmatch(digest):
        raise ArchiveError(
            f"the archive at a URL of {scheme}: wants its digest, sha256: and 64 hex digits, as `scripts/package "
            "show` prints it; without it nothing shows who has packaged"
        )
    kept = caches.folder("archives") / f"{digest.removeprefix('sha256:')}.mar"
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with filelock.FileLock(kept.with_suffix(".lock")):
        if not kept.exists():
            _download(archive, kept)
    return kept


def forget(archive: str, mar: Path) -> None:
    """Remove a download that turned out to be another archive than the digest says, so that it is tried again."""
    if urlsplit(archive).scheme not in ("", "file"):
        mar.unlink(missing_ok=True)


def _download(url: str, target: Path) -> None:
    """Raises ArchiveError, which names the scheme alone: a URL may hold a password."""
    import fsspec

    scheme = urlsplit(url).scheme
    try:
        descriptor, part = tempfile.mkstemp(dir=target.parent, prefix="download-")
        try:
            with os.fdopen(descriptor, "wb") as written, fsspec.open(url, "rb") as source:
                shutil.copyfileobj(source, written, 1 << 20)
            Path(part).replace(target)
        finally:
            Path(part).unlink(missing_ok=True)
    except Exception as error:  # each of fsspec's plug-ins has errors of its own
        raise ArchiveError(
            f"the archive at a URL of {scheme}: cannot be read: {type(error).__name__}; is its plug-in of fsspec "
            "installed (s3fs for s3:), and may this machine read it?"
        ) from None


def _shown(archive: str) -> str:
    """What names an archive in messages: a URL may hold a password."""
    scheme = urlsplit(archive).scheme
    return archive if scheme in ("", "file") else f"the archive at a URL of {scheme}:"


def _start(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as stream:
        return stream.read(MOST_BYTES_READ)
