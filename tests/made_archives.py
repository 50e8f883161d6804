"""Small .mar files, made without the archiver: right ones, and ones that were tampered with."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from handlers.hosts import code_versions, contents

Files = dict[str, bytes]


def code_files(kind: str) -> Files:
    """The handlers that run here, under the names that an archive has for them."""
    package = code_versions.PACKAGE
    paths = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    entries = {file for file, _ in contents.ENTRIES.values()}
    files = {f"handlers/{path.relative_to(package)}": path.read_bytes() for path in paths if path.name not in entries}
    entry = contents.ENTRIES[kind][0]
    return {**files, entry: (package / entry).read_bytes()}


def model_files(folder: Path, kind: str, config: Mapping[str, Any]) -> Files:
    """All files of an archive whose weights and the like lie in a folder."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {**files, **code_files(kind), contents.CONFIG: yaml.safe_dump(dict(config)).encode()}


def added_files(files: Files, name: str, kind: str) -> Files:
    """The provenance and the manifest of these files."""
    entry = contents.ENTRIES[kind][0]
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    provenance: dict[str, Any] = {
        "name": name,
        "version": "1.0",
        "kind": kind,
        "entry": entry,
        "digest": contents.content_digest(name, "1.0", digests),
        "weights": {},
        "parity": {},
        "files": digests,
    }
    provenance["seal"] = contents.seal(provenance)
    model = {"modelName": name, "modelVersion": "1.0", "handler": entry, "configFile": contents.CONFIG}
    return {
        contents.PROVENANCE: json.dumps(provenance).encode(),
        contents.MANIFEST: json.dumps({"model": model}).encode(),
    }


def write_mar(path: Path, files: Files, kind: str = "image-classifier", extra: Files | None = None) -> Path:
    """Write a .mar of these files. extra: put in afterwards, unlisted, or in place of listed ones."""
    every = {**files, **added_files(files, path.stem, kind), **(extra or {})}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in every.items():
            archive.writestr(name, data)
    return path
