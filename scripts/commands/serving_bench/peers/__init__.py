"""Peers: other servers of the same network, measured in the same run with the same load.

A peer is a module with:
  NAME, WHAT            its name, and one line for --help
  NEEDS                 the packages that it needs, and for which kinds of archives
  SAME_ARCHIVE          whether it serves the archive itself, so that its answers have to be TorchServe's
  ON_SEVERAL_GPUS       whether it can be measured on more than one GPU
  objection(archive)    why it cannot serve this archive, or None
  translated(load)      the load in the form that it takes; raises GeneratorError if the load has none
  served(start)         a context manager that starts it, yields a subject to measure, and ends it
stock.py has `make(archive, store)` in place of the last two: an archive for the same TorchServe.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from server.client import Report, silent

from handlers import cpus
from serving_bench import layouts
from serving_bench.archives import CONFIG, IMAGES, TEXTS, Archive
from serving_bench.environment import gpu_names
from serving_bench.generator import Load

EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class Start:
    """How a peer that is a program of its own is started.

    name: of the peer and the archive, for reports. folder: for its files. python: its interpreter. load: as
    `translated` makes it. gpus: None if not given. environment: which GPUs it may see, and how they are shared.
    report: called again and again while the peer is waited for.
    """

    name: str
    archive: Archive
    folder: Path
    python: Path
    load: Load
    workers: int
    batch_size: int
    delay_ms: int
    gpus: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    report: Report = silent

    @property
    def gpus_seen(self) -> int:
        """How many GPUs the peer sees."""
        return len(layouts.visible(os.environ, len(gpu_names()))) if self.gpus is None else self.gpus


def network_objection(archive: Archive) -> str | None:
    """Why no peer can run this archive's network by itself, or None."""
    if found := archive_objection(archive):
        return found
    task = archive.handler.get("task", EMBEDDINGS)
    if archive.kind == TEXTS and task != EMBEDDINGS:
        return f"peers serve embeddings, and {archive.file.name} is for {task}"
    return None


def archive_objection(archive: Archive) -> str | None:
    """Why no peer can serve this archive, or None."""
    if archive.kind not in (IMAGES, TEXTS):
        return f"{archive.file.name} was not packaged by this project, so its network is not known"
    return None


def unpack(archive: Archive, folder: Path) -> Path:
    """Unpack the archive; its network has Hugging Face's layout."""
    target = folder / f"unpacked-{archive.name}"
    if not target.exists():
        with zipfile.ZipFile(archive.file) as content:
            content.extractall(target)
    return target


def unpack_for(start: Start) -> Path:
    """Unpack the archive for one start of one peer, with its count of workers, batch size and delay as settings.

    Without a GPU each of the workers gets its share of the CPUs, as a worker of TorchServe does.
    """
    target = start.folder / f"{start.name}-{start.workers}-{start.batch_size}-{start.delay_ms}"
    with zipfile.ZipFile(start.archive.file) as content:
        content.extractall(target)
    settings = start.archive.config
    settings |= {"maxWorkers": start.workers, "batchSize": start.batch_size, "maxBatchDelay": start.delay_ms}
    if not start.gpus_seen and not settings["handler"].get("cpuThreads"):
        settings["handler"] = {**settings["handler"], "cpuThreads": cpus.share(start.workers)}
    (target / CONFIG).write_text(yaml.safe_dump(settings), encoding="utf-8")
    return target
