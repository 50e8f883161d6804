"""Start a peer that is a program of its own, wait for it, and end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from server.errors import ServerError
from server.http import request
from server.paths import python_path
from server.ports import free_ports

from handlers import cpus
from serving_bench.fleet import summed
from serving_bench.generator import Endpoint, together
from serving_bench.peers import Start
from serving_bench.resource_usage import Groups

START_TIMEOUT_S = 300
REFUSALS = (400, 413, 415, 422)  # not 404: a server may answer before it has loaded its model
END_TIMEOUT_S = 40
Arguments = Callable[[int], Sequence[str]]  # of the interpreter; called with the port to listen on
Figures = Callable[[str], Mapping[str, float]]  # called with the server's address; returns what `metrics` does


@dataclass(frozen=True)
class Program:
    """A server that answers POST at `url`, in a process group of its own."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    figures: Figures
    kind: str = "peer"

    def endpoint(self) -> Endpoint:
        return Endpoint(self.url, {})

    def groups(self) -> Groups:
        root = psutil.Process(self.process.pid)
        return {"server": [root, *root.children(recursive=True)]}

    def metrics(self) -> Mapping[str, float]:
        parts = urlsplit(self.url)
        return self.figures(f"{parts.scheme}://{parts.netloc}")


@dataclass(frozen=True)
class Programs:
    """Several programs that serve the same model; the load is spread evenly over them."""

    name: str
    members: Sequence[Program]
    kind: str = "peer"

    def endpoint(self) -> Endpoint:
        return together([member.endpoint() for member in self.members])

    def groups(self) -> Groups:
        return {"server": [process for member in self.members for process in member.groups()["server"]]}

    def metrics(self) -> Mapping[str, float]:
        return summed([member.metrics() for member in self.members])


def no_figures(address: str) -> Mapping[str, float]:
    """Of a server that counts no batches."""
    return {}


def with_job(start: Start, file: Path, job: Mapping[str, Any]) -> Arguments:
    """The arguments for a server of this folder: its file, and a file in which it finds its job and its port."""

    def arguments(port: int) -> Sequence[str]:
        settings = start.folder / f"{start.name}-{port}.json"
        settings.write_text(json.dumps({**job, "port": port}), encoding="utf-8")
        return str(file), str(settings)

    return arguments


@contextlib.contextmanager
def program(start: Start, arguments: Arguments, path: str, figures: Figures = no_figures) -> Iterator[Program]:
    """Run the peer's interpreter; wait until it answers 200 to the load's first body, sent to `path`.

    figures: counters and histograms of the model, by TorchServe's names.

    Raises ServerError with the end of its output.
    """
    (port,) = free_ports(1)
    log = start.folder / f"{start.name}-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(start.python), *arguments(port)],
            cwd=start.folder,
            env=_environment(start),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    found = Program(start.name, f"http://127.0.0.1:{port}{path}", process, figures)
    try:
        _wait(found, log, start)
        yield found
    finally:
        _end(process)


def _environment(start: Start) -> dict[str, str]:
    """This process's variables and the start's, with this tree first on PYTHONPATH."""
    behind = os.environ.get("PYTHONPATH")
    found = {**os.environ, **start.environment, "PYTHONPATH": python_path(behind)}
    cpus.wait_patiently(found)  # as TorchServe's workers do
    return found


def _wait(found: Program, log: Path, start: Start) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    refused = ""
    while time.monotonic() < deadline and found.process.poll() is None:
        start.report(f"{found.name} is starting")
        with contextlib.suppress(OSError):
            answer = request("POST", found.url, start.load.bodies[0], start.load.headers)
            if answer.status == 200:
                return
            refused = f"{answer.status} {answer.body[:200].decode(errors='replace')}"
            if answer.status in REFUSALS:  # it has started
                break
        time.sleep(0.5)
    lines = log.read_text(errors="replace").strip().splitlines()[-5:]
    raise ServerError(f"{found.name} did not start: {' | '.join(filter(None, [refused, *lines]))}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, then kill what is left of its process group.

    Ray's own processes are in the group. They have to live until the server has ended its replicas and its HAProxy.
    """
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
