"""The archive itself on Ray Serve, as scripts/serve-ray serves it: what the host takes, not the network."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

from ray_host.options import fronts_for

from handlers import cpus
from serving_bench.generator import Load
from serving_bench.peers import Start, archive_objection
from serving_bench.peers.needs import Needs
from serving_bench.peers.processes import Program, program, with_job

NAME = "ray"
WHAT = "the same archive on Ray Serve"
NEEDS = Needs("ray", "ray.serve", packages=("-c", "constraints.txt", "ray[serve]"))
SAME_ARCHIVE = True
ON_SEVERAL_GPUS = True
SERVER = Path(__file__).with_name("ray_serve_server.py")
objection = archive_objection


def translated(load: Load) -> Load:
    """The load as it is."""
    return load


@contextlib.contextmanager
def served(start: Start) -> Iterator[Program]:
    """Run Ray with a replica per worker, divided evenly between the GPUs.

    There are as many fronts, which read HTTP, as scripts/serve-ray starts for these GPUs and cores.
    """
    model = {
        "archive": str(start.archive.file.resolve()),
        "name": "model",
        "replicas": start.workers,
        "batch_size": start.batch_size,
        "max_delay_ms": start.delay_ms,
        "num_gpus": share_of_gpu(start.gpus_seen, start.workers),
        "num_cpus": cpus.share(start.workers),  # as many threads as a worker of TorchServe has
        "edited_settings": True,
        "allow_other_version": True,
    }
    fronts = fronts_for(start.gpus_seen, cpus.usable())
    job = {"args": {"models": [model], "fronts": fronts, "front_num_cpus": 0}, "workers": start.workers}
    with program(start, with_job(start, SERVER, job), "/predictions/model") as found:
        yield found


def share_of_gpu(gpus: int, workers: int) -> float:
    """The share of a GPU per replica. Ray counts to four digits; rounded down, so that all of them fit."""
    return min(1.0, math.floor(1e4 * gpus / workers) / 1e4)
