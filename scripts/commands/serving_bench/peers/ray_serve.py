"""The archive itself on Ray Serve, as scripts/serve-ray serves it: what the host takes, not the network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from handlers import cpus
from serving_bench.archives import IMAGES, TEXTS, Archive
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
    archive: Archive, unpacked: Path, load: Load, workers: int, batch_size: int, delay_ms: int
) -> Iterator[Program]:
    """Run Ray with `workers` replicas and one front."""
    model = {
        "archive": str(archive.file.resolve()),
        "name": "model",
        "replicas": workers,
        "batch_size": batch_size,
        "max_delay_ms": delay_ms,
        "num_cpus": cpus.share(workers),  # as many threads as a worker of TorchServe has
        "edited_settings": True,
        "allow_other_version": True,
    }
    job = {"args": {"models": [model], "front_num_cpus": 0}, "workers": workers}
    with program(f"{NAME}-{archive.name}", SERVER, job, "/predictions/model", unpacked.parent, load) as found:
        yield found
