"""What an archive says of itself: provenance.json, which packaging writes last, and the archiver's manifest.

A digest shows that a file is what packaging wrote. It does not show who packaged: whoever can replace the archive can
replace the digests in it. A content digest that came another way does (`digest=` of load_archive).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from handlers import digests

MANIFEST = "MAR-INF/MANIFEST.json"
PROVENANCE = "provenance.json"
CONFIG = "model-config.yaml"
CARRIED_SAMPLES = "parity.safetensors"  # archive/carried_samples.py
SBOM = "sbom.cdx.json"  # archive/sbom.py
# The file with the handler's class, and that class, by kind of model.
ENTRIES = {
    "image-classifier": ("image_classifier.py", "ImageClassifier"),
    "text-encoder": ("text_encoder.py", "TextEncoder"),
}


class ArchiveError(ValueError):
    """The .mar was not made here, or is no longer what was packaged."""


@dataclass(frozen=True)
class Contents:
    """A provenance that has been read.

    Args:
        provenance: as in the file.
        manifest: the archiver's, as TorchServe's context has it.
    """

    provenance: Mapping[str, Any]
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the model's name, as it was packaged."""
        return str(self.provenance["name"])

    @property
    def kind(self) -> str:
        """Return "image-classifier" or "text-encoder"."""
        return str(self.provenance["kind"])

    @property
    def digest(self) -> str:
        """Return the content digest: "sha256:" and 64 hex digits."""
        return str(self.provenance["digest"])

    @property
    def files(self) -> Mapping[str, str]:
        """Return the SHA-256 of each file in hex, by name; without the provenance and the manifest."""
        files: Mapping[str, str] = self.provenance["files"]
        return files


def parsed(provenance: bytes, manifest: bytes, where: str) -> Contents:
    """Return what the two files say. Raises ArchiveError unless they agree, and the provenance with its seal.

    Args:
        where: names the archive in messages.
    """
    found = parsed_provenance(provenance, where)
    if found.get("kind") not in ENTRIES:
        raise ArchiveError(f"{where} holds a model of another kind than {' and '.join(ENTRIES)}")
    if seal(found) != found.get("seal"):
        raise ArchiveError(f"{where} is not what was packaged: changed {PROVENANCE}")
    if found["digest"] != content_digest(found["name"], found["version"], found["files"]):
        raise ArchiveError(f"{where} is not what was packaged: {PROVENANCE} holds a digest of other files")
    try:
        told = json.loads(manifest)
        problems = manifest_problems(told["model"], found)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ArchiveError(f"{where} is damaged: {MANIFEST} is not what the archiver writes") from None
    if problems:
        raise ArchiveError(f"{where} is not what was packaged: {', '.join(problems)}")
    return Contents(found, told)


def parsed_provenance(text: bytes, where: str) -> dict[str, Any]:
    """Return the provenance in this JSON. Raises ArchiveError if it is not what packaging writes."""
    try:
        content: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{where} is damaged: {error} ({PROVENANCE})") from None
    if not isinstance(content, dict) or not {"name", "version", "digest", "files"} <= content.keys():
        raise ArchiveError(f"{where} is damaged: {PROVENANCE} is not what packaging writes")
    files = content["files"]
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise ArchiveError(f"{where} is damaged: {PROVENANCE} is not what packaging writes")
    return content


def content_digest(name: str, version: str, files: Mapping[str, str]) -> str:
    """Return one digest of the model's name, version and files: the same for the same inputs on every machine.

    The carried samples are left out because the last digits of their fp32 outputs depend on the CPU, and the bill of
    materials because it names the versions of one machine. They have digests of their own among the files.
    """
    portable = {file: digest for file, digest in files.items() if file not in (CARRIED_SAMPLES, SBOM)}
    canonical = json.dumps({"name": name, "version": version, "files": portable}, sort_keys=True)
    return f"sha256:{digests.of_text(canonical)}"


def seal(provenance: Mapping[str, Any]) -> str:
    """Return a digest of the provenance itself without its seal: of parity figures, options and notes."""
    rest = {key: value for key, value in provenance.items() if key != "seal"}
    return f"sha256:{digests.of_text(json.dumps(rest, sort_keys=True, ensure_ascii=False, default=str))}"


def manifest_problems(model: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[str]:
    """Return what the manifest says of the model that the provenance does not.

    Args:
        model: the manifest's part of this name.
    """
    wanted = {
        "modelName": provenance["name"],
        "modelVersion": provenance["version"],
        "handler": provenance["entry"],
        "configFile": CONFIG,
    }
    return [
        f"manifest says {key} {model.get(key)!r}, wanted {value!r}"
        for key, value in wanted.items()
        if model.get(key) != value
    ]
