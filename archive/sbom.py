"""The archive's bill of materials: what runs in a worker that serves it, as CycloneDX 1.6.

It lists the handlers, the weights, and the Python packages that the handlers import, with all that those need, in the
versions of the machine that packages. A worker runs those of its own environment; docs/packaging.md says so.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from archive.digests import of_files

ROOT = Path(__file__).parent.parent
PROJECT = "torchserve-fast-handlers"
# What setup.cfg requires, and the server. Their own requirements are looked up.
REQUIRED = (
    *("torch", "transformers", "tokenizers", "safetensors", "numpy", "orjson", "pillow", "pyyaml", "filelock"),
    *("platformdirs", "torchserve"),
)
# What some engines, decoders and networks import, if it is installed.
OPTIONAL = ("onnxruntime", "triton", "tensorrt", "nvidia-nvimgcodec-cu13", "timm", "torchvision")


def write(path: Path, name: str, version: str, weights: Mapping[str, object], folder: Path) -> None:
    """Write the bill of materials of an archive.

    Args:
        path: of the file.
        name, version: of the model.
        weights: where they come from, as the provenance has it.
        folder: with the archive's files, model.safetensors among them.
    """
    archive = Component(name=name, version=version, type=ComponentType.APPLICATION, bom_ref="archive")
    parts = [_handlers(), *_weights(weights, folder)]
    packages, needs = _packages()
    bom = Bom(components=[*parts, *packages.values()])
    bom.metadata.component = archive
    bom.register_dependency(archive, parts)
    bom.register_dependency(parts[0], [packages[one] for one in (*REQUIRED, *OPTIONAL) if one in packages])
    for package, needed in needs.items():
        bom.register_dependency(packages[package], [packages[one] for one in needed])
    path.write_text(_reproducible(JsonV1Dot6(bom).output_as_string()), encoding="utf-8")


def _reproducible(text: str) -> str:
    """Return the bill without its time and with a serial number of its content: equal inputs make equal files."""
    content = json.loads(text)
    del content["metadata"]["timestamp"], content["serialNumber"]
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content, sort_keys=True))
    return json.dumps({"serialNumber": serial.urn, **content}, indent=2, ensure_ascii=False) + "\n"


def _handlers() -> Component:
    commit = _commit()
    return Component(
        name=PROJECT,
        version=_version(PROJECT),
        type=ComponentType.LIBRARY,
        bom_ref="handlers",
        description="the handlers in the archive",
        properties=[Property(name="commit", value=commit)] if commit else [],
    )


def _weights(weights: Mapping[str, object], folder: Path) -> list[Component]:
    path = folder / "model.safetensors"
    if not path.is_file():
        return []
    about = {key: str(value) for key, value in weights.items() if value}
    model = Component(
        name=about.get("source", "unknown"),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="weights",
        description="model.safetensors in the archive",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=of_files(path))],
        properties=[Property(name=f"checkpoint:{key}", value=value) for key, value in sorted(about.items())],
    )
    return [model]


def _packages() -> tuple[dict[str, Component], dict[str, list[str]]]:
    """Return the packages by name, and the names that each needs here."""
    required = _closure(REQUIRED)
    needs = required | _closure(OPTIONAL)
    return {name: _package(name, name in required) for name in sorted(needs)}, needs


def _package(name: str, is_required: bool) -> Component:
    version = _version(name)
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=name,
        scope=ComponentScope.REQUIRED if is_required else ComponentScope.OPTIONAL,
        purl=PackageURL("pypi", name=name, version=version),
    )


def _closure(roots: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the roots that are installed, and all that they need here: the names that each needs, by name."""
    found: dict[str, list[str]] = {}
    waiting = [name for name in roots if _version(name)]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _needed(name)
            waiting += found[name]
    return found


def _needed(name: str) -> list[str]:
    """Return the installed packages that a package needs on this machine, without its extras."""
    requirements = map(Requirement, importlib.metadata.requires(name) or ())
    applying = (one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""}))
    names = {canonicalize_name(one.name) for one in applying}
    return sorted(one for one in names if _version(one))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of this checkout; "+changes" follows if its handlers differ. None without git."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return None
    commit = _git(git, "rev-parse", "HEAD")
    return f"{commit}+changes" if commit and _git(git, "status", "--porcelain", "--", "handlers") else commit or None


def _git(program: str, *arguments: str) -> str:
    """Return what git prints; "" if it fails, as it does in another user's checkout."""
    done = subprocess.run([program, "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
