"""Start a peer that is a program of its own, wait for it, and end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from server.errors import ServerError
from server.http import request
from server.paths import ROOT
from server.ports import free_ports

from serving_bench.generator import Endpoint, Load
from serving_bench.resource_usage import Groups

START_TIMEOUT_S = 300
REFUSALS = (400, 413, 415, 422)  # not 404: a server may answer before it has loaded its model
END_TIMEOUT_S = 20


@dataclass(frozen=True)
class Program:
    """A server that answers POST at `url`, in a process group of its own."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    kind: str = "peer"

    def endpoint(self) -> Endpoint:
        return Endpoint(self.url, {})

    def groups(self) -> Groups:
        root = psutil.Process(self.process.pid)
        return {"server": [root, *root.children(recursive=True)]}

    def metrics(self) -> Mapping[str, float]:
        return {}


@contextlib.contextmanager
def program(
    name: str,
    file: Path,
    job: dict[str, Any],
    path: str,
    folder: Path,
    load: Load,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Program]:
    """Run `file` with its job; wait until it answers 200 to the load's first body.

    variables: of its environment, besides this process's own. Raises ServerError with the end of its output.
    """
    (port,) = free_ports(1)
    settings, log = folder / f"{name}.json", folder / f"{name}.log"
    settings.write_text(json.dumps({**job, "port": port}), encoding="utf-8")
    # Triton's Python stub loads the first libpython that it finds, and must find the one of this interpreter.
    paths = {
        "PYTHONPATH": [str(ROOT), str(ROOT / "scripts" / "commands")],
        "LD_LIBRARY_PATH": [sysconfig.get_config_var("LIBDIR")],
    }
    environment = {**os.environ, **(variables or {}), **{key: _prepended(key, of) for key, of in paths.items()}}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(file), str(settings)],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    found = Program(name, f"http://127.0.0.1:{port}{path}", process)
    try:
        _wait(found, log, load)
        yield found
    finally:
        _end(process)


def _prepended(key: str, paths: Sequence[str | None]) -> str:
    """An environment variable's paths, with `paths` before them."""
    return os.pathsep.join(filter(None, [*paths, os.environ.get(key)]))


def _wait(found: Program, log: Path, load: Load) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    refused = ""
    while time.monotonic() < deadline and found.process.poll() is None:
        with contextlib.suppress(OSError):
            answer = request("POST", found.url, load.bodies[0], load.headers)
            if answer.status == 200:
                return
            refused = f"{answer.status} {answer.body[:200].decode(errors='replace')}"
            if answer.status in REFUSALS:  # it has started
                break
        time.sleep(0.5)
    lines = log.read_text(errors="replace").strip().splitlines()[-5:]
    raise ServerError(f"{found.name} did not start: {' | '.join(filter(None, [refused, *lines]))}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group: SIGTERM first, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)
    process.wait()
