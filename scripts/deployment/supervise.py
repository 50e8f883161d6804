"""Run TorchServe, and stop it without a lost request: what scripts/deployment/start ends in.

At SIGTERM each model refuses new requests with 503, those that came before are answered, and TorchServe ends; after
--stop-s seconds it is ended in any case. The exit status is then 0. If TorchServe ends by itself, it is TorchServe's.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "commands"))

from server.client import Client
from server.config import read_properties
from updates import stopping

END_S = 10.0  # of --stop-s at most, and half of it at most: for TorchServe's own end
POLL_S = 0.2


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    made.add_argument("--folder", type=Path, required=True, help="where TorchServe runs; it gets key_file.json")
    made.add_argument("--ts-config", type=Path, required=True, help="its config.properties")
    made.add_argument("--stop-s", type=float, default=140.0, help="from SIGTERM to the end (default: %(default)s)")
    made.add_argument("command", nargs="+", help="after --: what starts TorchServe in the foreground")
    return made


def main() -> int:
    chosen = parser().parse_args()
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.set())
    process = subprocess.Popen(chosen.command)
    while process.poll() is None and not asked.wait(POLL_S):
        pass
    if not asked.is_set():
        return process.returncode
    deadline = time.monotonic() + chosen.stop_s
    drain_s = chosen.stop_s - min(END_S, chosen.stop_s / 2)
    print("stopping: new requests are refused, those in work are answered", flush=True)
    client = Client(chosen.folder, read_properties(chosen.ts_config), timeout_s=chosen.stop_s)
    waiting = threading.Thread(target=stopping.drain, args=(client, drain_s, say), daemon=True)
    waiting.start()
    waiting.join(drain_s)
    end(psutil.Process().children(recursive=True), deadline)
    return 0


def end(processes: list[psutil.Process], deadline: float) -> None:
    """Send SIGTERM to all of them, and SIGKILL to what is left at `deadline` (time.monotonic())."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, left = psutil.wait_procs(processes, max(0.0, deadline - time.monotonic()))
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, 2)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
