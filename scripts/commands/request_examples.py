"""A right request for the model in an archive, as options of curl, for who reads what a start has printed."""

from __future__ import annotations

import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

import yaml

from handlers.hosts.contents import CONFIG, PROVENANCE

IMAGES, TEXTS = "image-classifier", "text-encoder"
PICTURE = "archive/digits/samples/seven.png"  # of this tree; each model of images answers for it
TOKENIZER = ("special_tokens_map.json", "tokenizer_config.json")  # handlers/tasks/shared/special_tokens.py


def of_archive(mar: Path) -> str:
    """Return options of curl that send an archive's model a request; "" if the archive is not of this project."""
    try:
        with zipfile.ZipFile(mar) as archive:
            kind = _json(archive, PROVENANCE).get("kind")
            if kind == IMAGES:
                return f"-T {PICTURE}"
            return _texts(_texts_for(archive)) if kind == TEXTS else ""
    except (zipfile.BadZipFile, yaml.YAMLError, OSError, ValueError, TypeError, AttributeError):
        return ""


def _texts_for(archive: zipfile.ZipFile) -> list[str]:
    """Two texts. A model that fills masks wants its own mask token in each."""
    task = ((yaml.safe_load(archive.read(CONFIG)) or {}).get("handler") or {}).get("task")
    if task != "fill-mask":
        return ["one sentence", "and another"]
    mask = next((token for file in TOKENIZER if (token := _json(archive, file).get("mask_token"))), "[MASK]")
    token = str(mask["content"] if isinstance(mask, dict) else mask)
    return [f"one {token}", f"and another {token}"]


def _texts(texts: list[str]) -> str:
    return f'-H "Content-Type: application/json" -d {shlex.quote(json.dumps(texts))}'


def _json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    found = json.loads(archive.read(name)) if name in archive.namelist() else {}
    return found if isinstance(found, dict) else {}
