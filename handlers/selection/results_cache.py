"""Results of comparisons and measurements on this machine, as files in the folder of plans.

A file's name is a digest of everything that the result depends on, so a change of any of it is measured again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from handlers import digests, placement
from handlers.engines import EngineSpec, plans
from handlers.engines.graphs import sizes_up_to
from handlers.selection import compared_here, references

HANDLERS = Path(__file__).parents[1]
ENTRIES = ("image_classifier.py", "text_encoder.py")
# Files of an archive that outputs and times depend on.
FILES = (
    *("config.json", "model.safetensors", "model.onnx", "plan/model.json", "fp8.json", "tokenizer.json"),
    references.FILE,
)

logger = logging.getLogger(__name__)


def conditions(spec: EngineSpec, candidates: list[str]) -> dict[str, object]:
    """Return everything that times and outputs depend on, except the GPU's driver."""
    files = [spec.model_dir / name for name in FILES]
    return {
        "files": {path.name: digests.of_file(path) for path in files if path.is_file()},
        "candidates": list(candidates),
        "precision": spec.precision,
        "device": device_name(spec.device),
        "cpu": [platform.machine(), torch.backends.cpu.get_cpu_capability()],  # some CPUs have no name
        **(_image_conditions(spec) if spec.kind == "image-classifier" else _text_conditions(spec)),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "libraries": {name: version(name) for name in ("triton", "tensorrt", "onnxruntime", "transformers")},
        "handlers": source_digest(),
    }


def _image_conditions(spec: EngineSpec) -> dict[str, object]:
    sizes = sizes_up_to(spec.batch_size)
    return {"plan_buckets": list(spec.buckets), "image_size": spec.image_size, "batch_sizes": sizes}


def _text_conditions(spec: EngineSpec) -> dict[str, object]:
    return {
        "task": spec.task,
        "max_tokens": spec.max_tokens,
        "token_budget": spec.token_budget,
        "pooling": [list(spec.pooling.modes), spec.pooling.normalize],
        "sparse_pooling": [spec.sparse_pooling.strategy, spec.sparse_pooling.activation],
    }


def path(name: str, spec: EngineSpec, depends_on: Mapping[str, object]) -> Path:
    """Return the file of a result. name: what kind of result. depends_on: see `conditions`."""
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]
    return spec.plan_cache / f"{name}-{key}.json"


def write(path: Path, device: torch.device, content: Mapping[str, object]) -> None:
    """Write a result, with the machine and device where it was found (compared_here.py).

    Logs a warning if that is not possible; the next load then measures again.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = {"keptBy": compared_here.here(device), **content}
        plans.replace(path, (json.dumps(kept, indent=1) + "\n").encode())
    except OSError as error:
        logger.warning("what was measured here cannot be kept: %s", error)


def device_name(device: torch.device) -> str:
    """Return the model of the GPU or CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({placement.cpu_name()})"


def version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def source_digest() -> str:
    """Return the SHA-256 of the handlers' code, which an archive carries: newer code is measured again.

    The entries are left out. They lie beside the package in an archive, and in it elsewhere; a measurement of either
    holds for both, so every host of an archive serves it with the same engine.
    """
    files = sorted(path for path in HANDLERS.rglob("*.py") if path.name not in ENTRIES)
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
