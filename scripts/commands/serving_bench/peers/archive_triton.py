"""The archive itself in NVIDIA Triton, as scripts/export-triton writes it: what the host takes, not the network."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from server.errors import ServerError
from server.http import request
from server.paths import ROOT
from triton_host import export

from serving_bench.peers import Start, archive_objection, open_inference, unpack_for
from serving_bench.peers.needs import Needs
from serving_bench.peers.processes import Program, program

NAME = "triton"
WHAT = "the same archive in NVIDIA Triton, exported by scripts/export-triton, in protocol v2"
NEEDS = Needs(
    "nvidia-pytriton",
    "pytriton",
    requirements=ROOT / "scripts" / "commands" / "triton_host" / "requirements.txt",
    environment="triton",
)
SAME_ARCHIVE = True
ON_SEVERAL_GPUS = True
objection = archive_objection
translated = open_inference.translated


@contextlib.contextmanager
def served(start: Start) -> Iterator[Program]:
    """Export the archive, and run Triton with so many instances, divided evenly between the GPUs."""
    gpus = start.gpus_seen or 1
    if start.workers % gpus:
        raise ServerError(f"Triton has as many instances on each GPU: {start.workers} cannot be divided by {gpus}")
    per_gpu = dataclasses.replace(start, workers=start.workers // gpus)
    folder = unpack_for(per_gpu)
    repository = folder.with_name(f"{folder.name}-repository")
    export.export(export.parser().parse_args([str(folder), str(repository), "--name", "model", "--edited-settings"]))

    def arguments(port: int) -> list[str]:
        return ["-m", "triton_host.wheel_server", str(repository), "--http-port", str(port)]

    with program(start, arguments, open_inference.PATH, figures) as found:
        yield found


def figures(address: str) -> dict[str, float]:
    """Requests and batches, as Triton's statistics count them."""
    (found,) = request("GET", f"{address}/v2/models/model/stats").json()["model_stats"]
    return {
        "BatchSize_sum": found["inference_stats"]["success"]["count"],
        "BatchSize_count": found["execution_count"],
    }
