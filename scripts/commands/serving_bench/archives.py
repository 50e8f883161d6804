"""The archives to measure: what is inside, and how further ones are made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import archive_paths
import yaml

from archive import digests

NOOP = Path(__file__).with_name("noop_handler.py")
MANIFEST, CONFIG, PROVENANCE = "MAR-INF/MANIFEST.json", "model-config.yaml", "provenance.json"
IMAGES, TEXTS = "image-classifier", "text-encoder"


@dataclass(frozen=True)
class Archive:
    """A .mar file, and the name to serve it by."""

    name: str
    file: Path

    @property
    def kind(self) -> str | None:
        """IMAGES or TEXTS if this project packaged it, else None."""
        kind = self._json(PROVENANCE).get("kind")
        return kind if kind in (IMAGES, TEXTS) else None

    @property
    def config(self) -> dict[str, Any]:
        """Its model-config.yaml."""
        with zipfile.ZipFile(self.file) as archive:
            found = yaml.safe_load(archive.read(CONFIG)) if CONFIG in archive.namelist() else {}
        return found if isinstance(found, dict) else {}

    @property
    def handler(self) -> dict[str, Any]:
        """The section `handler` of its model-config.yaml."""
        found = self.config.get("handler")
        return found if isinstance(found, dict) else {}

    @property
    def batching(self) -> dict[str, Any]:
        """TorchServe's own keys of model-config.yaml, with TorchServe's defaults."""
        return {"batchSize": 1, "maxBatchDelay": 100} | {k: v for k, v in self.config.items() if k != "handler"}

    def about(self) -> dict[str, Any]:
        """For the report: the digest of the file, and of its content if this project packaged it."""
        return {
            "file": self.file.name,
            "sha256": digests.of_files(self.file),
            "content": self._json(PROVENANCE).get("digest"),
        }

    def _json(self, name: str) -> dict[str, Any]:
        with zipfile.ZipFile(self.file) as archive:
            found = json.loads(archive.read(name)) if name in archive.namelist() else {}
        return found if isinstance(found, dict) else {}


def read(text: str) -> Archive:
    """ "resnet101.mar" or "new=resnet101.mar"; a file name alone may lie in model_store/.

    Raises ValueError if that is no archive.
    """
    name, path = archive_paths.split(text)
    file = Path(archive_paths.located(path)).resolve()
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{path} is no .mar archive" if file.exists() else archive_paths.absent(path))
    with zipfile.ZipFile(file) as archive:
        if MANIFEST not in archive.namelist():
            raise ValueError(f"{path} holds no {MANIFEST}, so it is no TorchServe archive")
    return Archive(name or file.stem, file)


def make_noop(store: Path, name: str, answer_bytes: int) -> Archive:
    """Make an archive in `store` whose handler accepts anything and answers `answer_bytes` bytes."""
    return make(store, name, NOOP, {"answerBytes": answer_bytes})


def make(store: Path, name: str, handler: Path | str, config: Mapping[str, Any], *options: str) -> Archive:
    """Make an archive with torch-model-archiver. config: for model-config.yaml. options: more for the archiver."""
    with tempfile.TemporaryDirectory() as private:  # the archiver deletes $TMPDIR/NAME, whoever made it
        settings = Path(private) / CONFIG
        settings.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
        subprocess.run(
            [
                *(str(Path(sys.executable).with_name("torch-model-archiver")), "--model-name", name),
                *("--version", "1.0", "--handler", str(handler), "--config-file", str(settings)),
                *("--archive-format", "zip-store", "--export-path", str(store), "--force", *options),
            ],
            check=True,
            capture_output=True,
            env={**os.environ, "TMPDIR": private},
        )
    return Archive(name, store / f"{name}.mar")
