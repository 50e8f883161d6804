"""Ends what a killed program has left: `python -m ray_host.keeper FOLDER`, started by `start`, waits for its end.

The program holds the other end of this process's standard input. The system closes it when the program ends, also
after SIGKILL. This process is in a session of its own, so that Ctrl-C in a terminal does not reach it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from server.paths import python_path

from handlers.hosts import private_folders
from ray_host import leftovers

LONGEST_S = 10.0  # that `stop` waits


def start(folder: str) -> subprocess.Popen[bytes]:
    """Start a keeper of this process. folder: that `leftovers.made` has made."""
    environment = {name: value for name, value in os.environ.items() if name != leftovers.FOLDER}
    environment["PYTHONPATH"] = python_path(os.environ.get("PYTHONPATH"))
    command = [sys.executable, "-m", "ray_host.keeper", folder]
    return subprocess.Popen(
        command,
        env=environment,
        cwd="/",
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )


def stop(keeper: subprocess.Popen[bytes]) -> None:
    """Tell a keeper that its work is done."""
    if keeper.stdin is not None:
        keeper.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        keeper.wait(LONGEST_S)


def main() -> None:
    """Wait for the end of the program, then end what it has left."""
    folder = Path(sys.argv[1])
    sys.stdin.buffer.read()
    if folder.exists():
        count = leftovers.clear(folder, logs=True)
        print(f"serve-ray was killed; ended {count} processes that it had left", file=sys.stderr, flush=True)
    private_folders.remove_abandoned(Path(tempfile.gettempdir()))


if __name__ == "__main__":
    main()
