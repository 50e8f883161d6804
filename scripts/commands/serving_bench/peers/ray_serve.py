"""The archive itself on Ray Serve, as scripts/serve-ray serves it: what the host takes, not the network."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from handlers import cpus
from serving_bench import layouts
from serving_bench.archives import IMAGES, TEXTS, Archive
from serving_bench.environment import gpu_names
from serving_bench.generator import Load
from serving_bench.peers import missing
from serving_bench.peers.processes import Program, program

NAME = "ray"
WHAT = "the same archive on Ray Serve (scripts/setup ray)"
CONTENT_TYPE = None
SERVER = Path(__file__).with_name("ray_serve_server.py")


def objection(archive: Archive) -> str | None:
    """Why it cannot run here, or None."""
    if archive.kind not in (IMAGES, TEXTS):
        return f"{archive.file.name} was not packaged by this project"
    return missing("ray")


def request(body: bytes, load: Load) -> bytes:
    """The body as it is."""
    return body


@contextlib.contextmanager
def served(
    archive: Archive,
    unpacked: Path,
    load: Load,
    workers: int,
    batch_size: int,
    delay_ms: int,
    gpus: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Program]:
    """Run Ray with `workers` replicas, divided evenly between the GPUs.

    Without `gpus` there is one front, which reads HTTP; else as `fronts_for` says.
    """
    there = len(layouts.visible(os.environ, len(gpu_names()))) if gpus is None else gpus
    model = {
        "archive": str(archive.file.resolve()),
        "name": "model",
        "replicas": workers,
        "batch_size": batch_size,
        "max_delay_ms": delay_ms,
        "num_gpus": share_of_gpu(there, workers),
        "num_cpus": cpus.share(workers),  # as many threads as a worker of TorchServe has
        "edited_settings": True,
        "allow_other_version": True,
    }
    fronts = 1 if gpus is None else fronts_for(gpus, cpus.usable())
    job = {"args": {"models": [model], "fronts": fronts, "front_num_cpus": 0}, "workers": workers}
    with program(
        f"{NAME}-{archive.name}", SERVER, job, "/predictions/model", unpacked.parent, load, environment
    ) as found:
        yield found


def share_of_gpu(gpus: int, workers: int) -> float:
    """The share of a GPU per replica. Ray counts to four digits; rounded down, so that all of them fit."""
    return min(1.0, math.floor(1e4 * gpus / workers) / 1e4)


def fronts_for(gpus: int, cores: int) -> int:
    """Processes that read HTTP: one for 8 cores, 4 per GPU at most."""
    return max(1, min(cores // 8, 4 * gpus))
