"""The archive to deploy: its version, and its place in the model store."""

from __future__ import annotations

import filecmp
import json
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from server.errors import ServerError

MANIFEST = "MAR-INF/MANIFEST.json"


@dataclass(frozen=True)
class ArchiveFile:
    """A .mar file. version: of its manifest, by which TorchServe registers it."""

    file: Path
    version: str

    def place(self, store: Path) -> Path | None:
        """Copy the file into the model store unless it is there. Returns the copy. Raises ServerError or OSError."""
        target = store / self.file.name
        if target.exists():
            if target.samefile(self.file) or filecmp.cmp(target, self.file, shallow=False):
                return None
            raise ServerError(f"{target} is another archive of that name; give the new one another name")
        half = target.with_name(f".{target.name}.part")
        try:
            shutil.copyfile(self.file, half)
            half.replace(target)
        finally:
            half.unlink(missing_ok=True)
        return target


def read(file: Path) -> ArchiveFile:
    """An archive's version. Raises ServerError if this is no archive of TorchServe, OSError if it cannot be read."""
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = json.loads(archive.read(MANIFEST))
    except (zipfile.BadZipFile, KeyError, ValueError):
        raise ServerError(f"{file} is no archive of TorchServe; scripts/package makes archives") from None
    version = manifest.get("model", {}).get("modelVersion") if isinstance(manifest, dict) else None
    return ArchiveFile(file, str(version or "1.0"))  # as TorchServe takes one without a version
