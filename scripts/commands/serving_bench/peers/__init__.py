"""Other servers of the same network, measured in the same run with the same load.

A peer is a module with NAME, WHAT (one line for --help) and `objection(archive)` (why it cannot run here, or None);
further `request(body, load)`, which turns a body of the load into what it takes, CONTENT_TYPE of that, and
`served(archive, unpacked, load, workers, batch_size, delay_ms)`, a context manager that starts it, gives a subject to
measure, and ends it. stock.py makes an archive for the same TorchServe instead (`make`).
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
    """Which of these packages is not installed, in words; None if all are."""
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def import_error(module: str) -> str | None:
    """What importing `module` raises in a process of its own; None if nothing."""
    command = [sys.executable, "-c", f"import {module}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    lines = done.stderr.strip().splitlines() or ["without a word"]
    return f"{module} cannot be imported: {lines[-1]}" if done.returncode else None


def unpack(archive: Archive, folder: Path) -> Path:
    """The archive's files, with its network in Hugging Face's layout."""
    target = folder / f"unpacked-{archive.name}"
    if not target.exists():
        with zipfile.ZipFile(archive.file) as content:
            content.extractall(target)
    return target
