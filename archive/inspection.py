"""Look into a .mar: its digests, a description for people, and whether it is still what was packaged."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archive import digests
from handlers.hosts.contents import (
    CARRIED_SAMPLES,
    CONFIG,
    ENTRIES,
    MANIFEST,
    PROVENANCE,
    SBOM,
    ArchiveError,
    content_digest,
    manifest_problems,
    parsed_provenance,
    seal,
)

__all__ = [
    "CARRIED_SAMPLES",
    "CONFIG",
    "ENTRIES",
    "MANIFEST",
    "PROVENANCE",
    "SBOM",
    "SIGNATURE",
    "ArchiveError",
    "content_digest",
    "file_digests",
    "read_provenance",
    "seal",
    "show",
    "verify",
]

SIGNATURE = ".minisig"  # ends the name of the file beside an archive that holds its signature: archive/signing


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


def read_provenance(mar: Path) -> dict[str, Any]:
    """Return the archive's provenance. Raises ArchiveError if it has none, or a damaged one."""
    with _open(mar) as archive:
        if PROVENANCE not in archive.namelist():
            raise ArchiveError(f"{mar} holds no {PROVENANCE}: it was not made by this packaging script")
        try:
            text = archive.read(PROVENANCE)
        except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ArchiveError(f"{mar} is damaged: {error} ({PROVENANCE})") from None
    return parsed_provenance(text, str(mar))


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
        *_decoder_lines(provenance.get("jpegs", {})),
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


def _decoder_lines(jpegs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return lines on JPEGs that the GPU decoded; none if they were not compared. jpegs: archive/decoder_gate.py."""
    if not jpegs:
        return []
    figures = [f"  {name}: {_parity_line(figures)}" for name, figures in jpegs.items()]
    return ["JPEGs decoded on the GPU against those decoded by the CPU:", *figures]


def _manifest_problems(mar: Path, provenance: Mapping[str, Any]) -> list[str]:
    with _open(mar) as archive:
        if MANIFEST not in archive.namelist():
            return [f"missing {MANIFEST}"]
        model = json.loads(archive.read(MANIFEST))["model"]
    return manifest_problems(model, provenance)


def _open(mar: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(mar)
    except FileNotFoundError:
        raise ArchiveError(f"there is no {mar}") from None
    except (zipfile.BadZipFile, OSError) as error:
        raise ArchiveError(f"{mar} is no model archive: {error}") from None
