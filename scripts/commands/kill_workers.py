"""Kill workers of a model under load, as the kernel does when memory ends, and see what clients notice.

Needs a running TorchServe on this machine. Each answer is checked against its request, on connections that are kept.
Exit status: 0 if no answer was wrong, no request hung, and each kill was followed by a right answer; else 1.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import ready
from argument_types import seconds
from checked_load import samples
from checked_load.load import HUNG, WRONG, Load
from server.client import Client
from server.errors import ServerError
from server.options import add_server_options, client_of

WAIT_S = 120.0


def main() -> int:
    chosen = parser().parse_args()
    try:
        client = client_of(chosen)
        load = Load(client, chosen.model, known(client, chosen), chosen.connections)
        with load.running():
            time.sleep(chosen.every_s)
            waits = [kill_one(load, chosen.every_s) for _ in range(chosen.kills)]
    except (OSError, ServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("requests: " + ", ".join(f"{count} {kind}" for kind, count in load.counts().most_common()))
    print("seconds from each kill to the next good answer: " + ", ".join(map(_shown, waits)))
    print(f"longest wait of one request: {load.longest_s():.2f} s")
    bad = load.counts().keys() & {HUNG, WRONG}
    return 1 if bad or None in waits else 0


def kill_one(load: Load, pause_s: float) -> float | None:
    """Kill a ready worker; returns the seconds to the next good answer, and lets `pause_s` pass then."""
    found = [worker for worker in load.client.describe(load.model)["workers"] if worker["status"] == "READY"]
    if not found:
        raise ServerError(f"{load.model} has no worker that is ready")
    moment = time.monotonic()
    os.kill(int(found[0]["pid"]), signal.SIGKILL)
    while (waited := load.seconds_to_good(moment)) is None and time.monotonic() < moment + WAIT_S:
        time.sleep(0.05)
    time.sleep(pause_s)
    return waited


def known(client: Client, chosen: argparse.Namespace) -> list[samples.Sample]:
    """Inputs with their answers: files of --inputs, or texts. Raises ServerError for images without --inputs."""
    if chosen.inputs is not None:
        return samples.known(client, chosen.model, samples.files(chosen.inputs))
    if ready.described(client, chosen.model).get("kind") != "text-encoder":
        raise ServerError("--inputs is wanted: a folder of files with answers that differ, such as photographs")
    return samples.known(client, chosen.model, samples.texts(20))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model", metavar="NAME")
    made.add_argument("--inputs", type=Path, metavar="DIR", help="files to send (default: texts, to a text encoder)")
    made.add_argument("--connections", type=int, default=8, metavar="N", help="(default: %(default)s)")
    made.add_argument("--kills", type=int, default=3, metavar="N", help="(default: %(default)s)")
    made.add_argument(
        "--every-s", type=seconds, default=3.0, metavar="S", help="from a good answer to the next kill (%(default)s)"
    )
    add_server_options(made)
    return made


def _shown(waited: float | None) -> str:
    return "none came" if waited is None else f"{waited:.2f}"


if __name__ == "__main__":
    sys.exit(main())
