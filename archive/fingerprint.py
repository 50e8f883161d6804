"""A digest of everything that decides an archive's content, which tells whether an archive is up to date.

Reads files and imports nothing heavy, so that the answer is quick.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from archive import digests, inspection
from handlers.digests import of_text

ROOT = Path(__file__).parent.parent
VERSIONS = ("torch", "transformers", "tokenizers", "safetensors", "pillow", "torch-model-archiver")
# Packages that change what an archive holds, or what is checked at packaging, if they are installed.
OPTIONAL = ("triton", "onnx", "onnxruntime", "tensorrt", "torch2trt", "timm", "torchvision")
GPUS = Path("/proc/driver/nvidia/gpus")  # NVIDIA's driver has a folder per GPU there


def inputs_digest(options: Mapping[str, object], sources: Sequence[Path]) -> str:
    """Digest options, sources, this tree, versions and machine.

    Args:
        options: as the provenance records them.
        sources: files and folders that the archive is made from. Those that are not there are left out.

    Returns:
        "sha256:" and 64 hex digits.
    """
    tree = sorted(path for name in ("handlers", "archive") for path in (ROOT / name).rglob("*") if _is_source(path))
    files = [path for source in sources for path in (sorted(source.rglob("*")) if source.is_dir() else [source])]
    record = {
        "options": dict(options),
        "tree": {str(path.relative_to(ROOT)): digests.of_files(path) for path in tree},
        "sources": [(path.name, digests.of_files(path)) for path in files if path.is_file()],
        "versions": versions(),
        "machine": machine(),
    }
    return f"sha256:{of_text(json.dumps(record, sort_keys=True, default=str))}"


def up_to_date(mar: Path, inputs: str) -> str | None:
    """Return the archive's content digest if it was made from inputs with this digest, else None."""
    try:
        provenance = inspection.read_provenance(mar)
    except inspection.ArchiveError:  # there is none, or it is damaged: packaging replaces it
        return None
    return str(provenance["digest"]) if provenance.get("inputs") == inputs else None


def versions() -> dict[str, str]:
    """Return the versions of the packages that archives are made with."""
    return {name: importlib.metadata.version(name) for name in VERSIONS}


def machine() -> dict[str, object]:
    """Return what differs between machines and matters to an archive: optional packages, and models of GPUs."""
    installed = {name: _version(name) for name in OPTIONAL if importlib.util.find_spec(name)}
    models = {
        line.partition(":")[2].strip()
        for path in GPUS.glob("*/information")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("Model:")
    }
    return {"packages": installed, "gpus": sorted(models)}


def _version(package: str) -> str:
    """Return the version of a package that can be imported, or "unknown" for a bare checkout without metadata."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _is_source(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    return path.is_file() and path.suffix != ".pyc" and not hidden
