"""A Ray Serve for tests: in an environment of its own, because Ray brings packages that it pins."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import own_environment
import psutil
import pytest
from server.paths import ROOT
from server.ports import free_ports

from tests.e2e import host_process
from tests.hosts_table import Asked, Reply

CONSTRAINTS = ROOT / "constraints.txt"
COMMANDS = ROOT / "scripts" / "commands"


def python() -> Path:
    """Return an interpreter with Ray, which sees the packages of the tests, too. Making it takes a minute or two.

    Skips the test if Ray cannot be had.
    """
    pins = [line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line.startswith("ray==")]
    try:
        return own_environment.made("ray", str(pins), ["-c", str(CONSTRAINTS), "ray[serve]"], over_this_one=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"Ray's packages cannot be installed here: pip ended with {error.returncode}")


class RayServer:
    """A driver (ray_driver.py) and what it has started."""

    def __init__(self, process: subprocess.Popen[str], port: int, grpc_port: int) -> None:
        self.process, self.address, self.grpc = process, f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}"

    def serve(self, args: dict[str, Any]) -> None:
        """Serve these models in place of those before. Raises RuntimeError."""
        told = self._told(json.dumps(args), "ready", "error")
        if not told.startswith("ready"):
            raise RuntimeError(told)

    def running(self, deployment: str) -> int:
        """Return how many replicas answer."""
        return int(json.loads(self._told("state", "state").removeprefix("state"))[deployment])

    def _told(self, line: str, *words: str) -> str:
        """The first line with which the driver answers a line, and that begins with one of these words."""
        _pipe(self.process.stdin).write(f"{line}\n")
        _pipe(self.process.stdin).flush()
        told = _pipe(self.process.stdout).readline()
        while told and not told.startswith(words):
            told = _pipe(self.process.stdout).readline()
        if not told:
            raise RuntimeError("the driver ended")
        return told

    def end(self) -> None:
        """Let it end as after Ctrl-C."""
        self.process.communicate(timeout=60)

    def ask(self, asked: Asked) -> Reply:
        """Return the answer to a request of the table."""
        return host_process.ask(self.address, asked)

    def addresses(self) -> set[tuple[str, int]]:
        """Return where this server's processes listen, by address and port."""
        every = psutil.Process(self.process.pid).children(recursive=True)
        found = (connection for process in every for connection in _listening(process))
        return {(str(connection.laddr.ip), int(connection.laddr.port)) for connection in found}

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Return the processes of a deployment's replicas."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if _title(child).startswith(f"ray::ServeReplica:models:{deployment}")]


@contextmanager
def ray_server(folder: Path, patience_s: float = 30) -> Iterator[RayServer]:
    """Yield a Ray Serve without models.

    Args:
        folder: gets its output.
        patience_s: that requests on their way get at the end.
    """
    port, grpc_port = free_ports(2)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{COMMANDS}"}
    command = [str(python()), str(ROOT / "tests" / "e2e" / "ray_driver.py"), str(port), str(grpc_port)]
    command.append(str(patience_s))
    pipe = subprocess.PIPE
    with (folder / "ray.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=log)
        try:
            yield RayServer(process, port, grpc_port)
        finally:
            started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            try:
                if process.poll() is None:
                    process.communicate(timeout=60)
            finally:
                process.kill()
                for child in started:
                    with contextlib.suppress(psutil.Error):
                        child.kill()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _listening(process: psutil.Process) -> list[Any]:
    try:
        connections = process.net_connections("inet")
    except psutil.Error:
        return []
    return [connection for connection in connections if connection.status == psutil.CONN_LISTEN]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
