"""The archive itself behind KServe's model server, as scripts/serve-kserve serves it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from server.http import request
from server.paths import ROOT

from serving_bench import prometheus
from serving_bench.peers import Start, archive_objection, open_inference, unpack_for
from serving_bench.peers.needs import Needs
from serving_bench.peers.processes import Programs, program

NAME = "kserve"
WHAT = "the same archive behind KServe's model server, a server per worker, in protocol v2"
NEEDS = Needs(
    "kserve",
    "kserve",
    requirements=ROOT / "scripts" / "commands" / "kserve_host" / "requirements.txt",
    environment="kserve",
)
SAME_ARCHIVE = True
ON_SEVERAL_GPUS = True
objection = archive_objection
translated = open_inference.translated


@contextlib.contextmanager
def served(start: Start) -> Iterator[Programs]:
    """Run as many servers as there are workers, since one holds one model; the GPUs take turns.

    In a cluster these are pods. Here the load generator spreads its clients over them, as an ingress would.
    """
    folder = str(unpack_for(start))

    def arguments_of(index: int) -> Callable[[int], list[str]]:
        device = f"cuda:{index % start.gpus_seen}" if start.gpus_seen else "cpu"
        options = ["--model_name", "model", "--device", device, "--edited-settings", "--other-version"]
        return lambda port: ["-m", "kserve_host.server", "--http_port", str(port), *options, folder]

    with contextlib.ExitStack() as running:
        members = [
            running.enter_context(program(start, arguments_of(index), open_inference.PATH, figures))
            for index in range(start.workers)
        ]
        yield Programs(start.name, members)


def figures(address: str) -> dict[str, float]:
    """What the handlers tell of batches."""
    return prometheus.of_model(request("GET", f"{address}/metrics").body.decode(), "model")
