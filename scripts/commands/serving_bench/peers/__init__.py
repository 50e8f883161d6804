"""Peers: other servers of the same network, measured in the same run with the same load.

A peer is a module with:
  NAME, WHAT                   its name, and one line for --help
  objection(archive)           why it cannot run here, or None
  CONTENT_TYPE                 of the requests that it takes; None for the load's own headers
  request(body, load)          a body of the load, in the form that it takes
  served(archive, unpacked, load, workers, batch_size, delay_ms, gpus, environment)
                               a context manager that starts it, yields a subject to measure, and ends it; gpus: None
                               if not given; environment: which GPUs it may see, and how they are shared
stock.py has `make(archive, store)` in place of the last three: an archive for the same TorchServe.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

from serving_bench.archives import IMAGES, TEXTS, Archive

EMBEDDINGS = "embeddings"


def common_objection(archive: Archive) -> str | None:
    """Why no peer can serve this archive's network, or None."""
    if archive.kind not in (IMAGES, TEXTS):
        return f"{archive.file.name} was not packaged by this project, so its network is not known"
    task = archive.handler.get("task", EMBEDDINGS)
    if archive.kind == TEXTS and task != EMBEDDINGS:
        return f"peers serve embeddings, and {archive.file.name} is for {task}"
    return None


def missing(*modules: str) -> str | None:
    """Names the packages that are not installed; None if all are."""
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def import_error(module: str) -> str | None:
    """The error of importing `module` in a process of its own; None if it can be imported."""
    command = [sys.executable, "-c", f"import {module}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    lines = done.stderr.strip().splitlines() or ["it gave no reason"]
    return f"{module} cannot be imported: {lines[-1]}" if done.returncode else None


def unpack(archive: Archive, folder: Path) -> Path:
    """Unpack the archive; its network has Hugging Face's layout."""
    target = folder / f"unpacked-{archive.name}"
    if not target.exists():
        with zipfile.ZipFile(archive.file) as content:
            content.extractall(target)
    return target
