"""Whether a worker's folder holds the files that were packaged: all of them, unchanged, and no others.

A full disk tears a file, a copy misses one, and a file beside the handlers is imported in place of a package. The
digests come with the archive (provenance.json). So this finds accidents, and changes by somebody who may not change
the digests; signatures find the others, before TorchServe unpacks anything.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.machinery import all_suffixes
from pathlib import Path, PurePosixPath
from typing import Any

from handlers import digests

EDITABLE = "model-config.yaml"  # its settings are meant to be edited, in the archive or in the folder
UNLISTED = ("provenance.json", "MAR-INF/MANIFEST.json")  # the first holds the digests, the second the time
CODE = tuple(all_suffixes())  # that Python imports
SHOWN = 5  # names in a message
WAY_OUT = (
    "If the disk is full, make room. If the archive was edited, package it again: only its model-config.yaml may be "
    "edited. `scripts/package verify FILE.mar` says whether the archive itself is what was packaged"
)

logger = logging.getLogger(__name__)


class ChangedFilesError(ValueError):
    """The folder does not hold what was packaged."""


def check(folder: Path, provenance: Mapping[str, Any]) -> list[str]:
    """Compare an unpacked archive with the digests that it came with.

    Args:
        folder: of the unpacked archive.
        provenance: its content; without "files" nothing is compared.

    Returns:
        The files that were edited, and may be.

    Raises:
        ChangedFilesError: names files that are missing, changed or new.
    """
    listed: Mapping[str, str] = provenance.get("files") or {}
    if not listed:
        return []
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    changed = [name for name in sorted(listed.keys() & found.keys()) if digests.of_file(found[name]) != listed[name]]
    problems = {
        "missing": sorted(listed.keys() - found.keys()),
        "changed": [name for name in changed if name != EDITABLE],
        "new": sorted(_added(found, listed)),
    }
    if any(problems.values()):
        said = "; ".join(f"{what}: {_shown(names)}" for what, names in problems.items() if names)
        raise ChangedFilesError(f"the unpacked archive is not what was packaged. {said}. {WAY_OUT}")
    for name in changed:
        logger.info("%s was edited after packaging", name)
    return changed


def _added(found: Iterable[str], listed: Collection[str]) -> Iterator[str]:
    """New files that a load could read: those in the archive's own folders, and code anywhere.

    TorchServe starts workers in this folder, so a planCache with a relative path is a folder of its own in it.
    """
    own = {PurePosixPath(name).parent for name in listed}
    for name in found:
        path = PurePosixPath(name)
        if name not in listed and name not in UNLISTED and (path.parent in own or name.endswith(CODE)):
            yield name


def _files(folder: Path) -> Iterator[Path]:
    """All files but what Python compiles."""
    return (path for path in folder.rglob("*") if not path.is_dir() and "__pycache__" not in path.parts)


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
