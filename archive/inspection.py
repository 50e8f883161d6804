"""Look into a .mar: its digests, a description for people, and whether it is still what was packaged."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archive import digests

MANIFEST = "MAR-INF/MANIFEST.json"
PROVENANCE = "provenance.json"
CONFIG = "model-config.yaml"
SIGNATURE = ".minisig"  # ends the name of the file beside an archive that holds its signature: archive/signing
SBOM = "sbom.cdx.json"  # archive/sbom.py
CARRIED_SAMPLES = "parity.safetensors"  # archive/carried_samples.py
# The file with the handler's class, and that class, by kind of model.
ENTRIES = {
    "image-classifier": ("image_classifier.py", "ImageClassifier"),
    "text-encoder": ("text_encoder.py", "TextEncoder"),
}


class ArchiveError(ValueError):
    """The .mar was not made here, or is no longer what was packaged."""


def file_digests(mar: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in the archive, in hex, by the file's name.

    The manifest is left out because it holds the time of packaging, and the provenance because it holds the digests.
    Raises ArchiveError, with the file's name, if a file is damaged.
    """
    with _open(mar) as archive:
        names = sorted(name for name in archive.namelist() if name not in (MANIFEST, PROVENANCE) and name[-1] != "/")
        found = {}
        for name in names:
            try:
                with archive.open(name) as stream:
                    found[name] = digests.of_stream(stream)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise ArchiveError(f"{mar} is damaged: {error} ({name})") from None
        return found


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


def read_provenance(mar: Path) -> dict[str, Any]:
    """Return the archive's provenance. Raises ArchiveError if it has none, or a damaged one."""
    with _open(mar) as archive:
        if PROVENANCE not in archive.namelist():
            raise ArchiveError(f"{mar} holds no {PROVENANCE}: it was not made by this packaging script")
        try:
            content: object = json.loads(archive.read(PROVENANCE))
        except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ArchiveError(f"{mar} is damaged: {error} ({PROVENANCE})") from None
    if not isinstance(content, dict) or not {"name", "version", "digest", "files"} <= content.keys():
        raise ArchiveError(f"{mar} is damaged: {PROVENANCE} is not what packaging writes")
    return content


def verify(mar: Path) -> str:
    """Recompute every digest and return the content digest.

    Raises ArchiveError, which names each file that is missing, added or changed.
    """
    provenance = read_provenance(mar)
    recorded, found = provenance["files"], file_digests(mar)
    problems = [
        *(f"missing {name}" for name in recorded.keys() - found.keys()),
        *(f"added {name}" for name in found.keys() - recorded.keys()),
        *(f"changed {name}" for name in recorded.keys() & found.keys() if recorded[name] != found[name]),
        *_manifest_problems(mar, provenance),
    ]
    digest = content_digest(provenance["name"], provenance["version"], found)
    if not problems and digest != provenance["digest"]:
        problems = [f"digest is {digest}, and {provenance['digest']} is recorded"]
    if seal(provenance) != provenance.get("seal"):
        problems.append(f"changed {PROVENANCE}")
    if problems:
        raise ArchiveError(f"{mar} is not what was packaged: {', '.join(sorted(problems))}")
    return digest


def show(mar: Path) -> str:
    """Return a description of the archive for people. Raises ArchiveError if it was not made here or is damaged."""
    provenance = read_provenance(mar)
    with _open(mar) as archive:
        sizes = {item.filename: item.file_size for item in archive.infolist() if not item.is_dir()}
        config = archive.read(CONFIG).decode() if CONFIG in sizes else "missing"
        sbom = json.loads(archive.read(SBOM)) if SBOM in sizes else {}
    lines = [
        f"{mar.name}: {provenance['name']} version {provenance['version']}, {provenance['kind']}",
        f"digest   {provenance['digest']}",
        f"weights  {provenance['weights']['source']} ({provenance['weights']['layout']})",
        f"         sha256 {provenance['weights']['sha256']}",
        *(f"note     {note}" for note in provenance["notes"]),
        "parity against fp32, measured when packaged:",
        *(f"  {name}: {_parity_line(figures)}" for name, figures in provenance["parity"].items()),
        "versions " + ", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
        f"sbom     {_sbom_line(sbom)}",
        "files:",
        *(f"  {size:>12,}  {name}" for name, size in sorted(sizes.items())),
        f"{CONFIG}:",
        *(f"  {line}" for line in config.splitlines()),
    ]
    return "\n".join(lines)


def _sbom_line(sbom: Mapping[str, Any]) -> str:
    if not sbom:
        return "none"
    return f"{SBOM}: {sbom['bomFormat']} {sbom['specVersion']}, {len(sbom['components'])} components"


def _parity_line(figures: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in figures.items() if key != "passed")
    return f"{'passed' if figures['passed'] else 'FAILED'}, {rest}"


def _manifest_problems(mar: Path, provenance: Mapping[str, Any]) -> list[str]:
    with _open(mar) as archive:
        if MANIFEST not in archive.namelist():
            return [f"missing {MANIFEST}"]
        model = json.loads(archive.read(MANIFEST))["model"]
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


def _open(mar: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(mar)
    except FileNotFoundError:
        raise ArchiveError(f"there is no {mar}") from None
    except (zipfile.BadZipFile, OSError) as error:
        raise ArchiveError(f"{mar} is no model archive: {error}") from None
