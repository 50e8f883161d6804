"""How a replica's process died: Ray Serve says only that it did, and Ray's log of the process says how."""

from __future__ import annotations

import re
from pathlib import Path

# Ray's handler of signals, Python's faulthandler, and the C++ runtime write these.
TOLD = re.compile(r"\*\*\* SIG\w+|Fatal Python error: .*|terminate called.*|what\(\): .*")
KILLED = (
    "its process died and wrote nothing, as after SIGKILL: most often this machine's memory was short, and the "
    "kernel (see dmesg) or Ray (see raylet.out) ended it"
)
READ = 1 << 16  # characters of a log


def of_replica(logs: Path, app: str, deployment: str) -> str:
    """Return how the last replica of a deployment died, by what its process wrote.

    Args:
        logs: the folder of Ray's logs.
    """
    title = f":actor_name:ServeReplica:{app}:{deployment}"  # Ray writes it as a line of its own
    for path in sorted(logs.glob("worker-*.err"), key=lambda path: path.stat().st_mtime, reverse=True):
        lines = _start(path).splitlines()
        if title in lines:
            told = list(dict.fromkeys(found[0].strip("* ") for line in lines if (found := TOLD.search(line))))
            return f"its process died: {', '.join(told)}; see {path}" if told else KILLED
    return KILLED


def _start(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(READ)
