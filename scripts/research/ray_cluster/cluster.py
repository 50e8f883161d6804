"""Ray on hosts, each started as scripts/deployment/ray/node does, and what serves there."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from server.paths import ROOT, python_path

from ray_cluster import network

HTTP_PORT, RAY_PORT = 8080, 6379
NODE = ROOT / "scripts" / "commands" / "ray_node.py"
DEPLOYER = Path(__file__).with_name("deployer.py")
START_S, TRIES = 180, 3


class Cluster:
    """A Ray over hosts. `serve` is to be called first.

    Args:
        hosts: the first is the head.
        process: deployer.py.
    """

    def __init__(self, hosts: list[str], process: subprocess.Popen[str]) -> None:
        self.hosts, self.process = hosts, process
        self._told("ready")

    def serve(self, args: Mapping[str, Any]) -> None:
        """Serve these models in place of those before. Returns when all are ready. Raises RuntimeError."""
        self._ask({"serve": args}, "ready")

    def delete(self) -> None:
        """Serve nothing."""
        self._ask({"delete": 1}, "ready")

    def state(self) -> dict[str, Any]:
        """Return the replicas by deployment and state, and as "alive" the hosts that Ray takes for alive."""
        found: dict[str, Any] = json.loads(self._ask({"state": 1}, "state"))
        return found

    def replicas(self, deployment: str = "digits") -> dict[str, set[int]]:
        """Return the process ids of a deployment's replicas on each host."""
        return {host: _replicas_on(host, deployment) for host in self.hosts}

    def is_whole(self, hosts: list[str], wanted: int) -> bool:
        """Return whether so many replicas of digits answer on these hosts."""
        count = sum(len(self.replicas()[host]) for host in hosts)
        return count >= wanted and self.state().get("digits", {}).get("RUNNING", 0) >= wanted

    def _ask(self, asked: Mapping[str, Any], wanted: str) -> str:
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return self._told(wanted)

    def _told(self, wanted: str) -> str:
        """The rest of the next line that begins with a word; Ray prints lines of its own. Raises RuntimeError."""
        for line in self.process.stdout or ():
            word, _, rest = line.strip().partition(" ")
            if word == wanted:
                return rest
            if word == "error":
                raise RuntimeError(rest)
        raise RuntimeError("the program that deploys has ended; the log has the reason")


@contextlib.contextmanager
def running(
    cpus: Mapping[str, int], log: IO[str], python: str = sys.executable, more: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """Yield a Ray with these hosts, which serves nothing yet.

    Args:
        cpus: that Ray counts on each host; the first host is the head.
        log: gets what the programs print.
        python: an interpreter with Ray.
        more: environment variables for all of them.

    Raises OSError and CalledProcessError.
    """
    with contextlib.ExitStack() as stack:
        # Ray's and HAProxy's sockets lie there; their paths may not be long.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True))
        stack.enter_context(network.namespaces(list(cpus)))
        environment = {**_environment(), **(more or {}), "TMPDIR": folder}
        head = next(iter(cpus))
        role = ["--head", f"--port={RAY_PORT}", "--include-dashboard=false", f"--temp-dir={folder}"]
        at = f"{network.address(head)}:{RAY_PORT}"
        for host in cpus:
            _start(python, host, role if host == head else [f"--address={at}"], cpus[host], environment, log)
        command = network.inside(head, python, str(DEPLOYER), at, str(HTTP_PORT))
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=log)
        stack.enter_context(process)
        stack.callback(process.kill)
        yield Cluster(list(cpus), process)


def until(done: Callable[[], object], patience_s: float) -> bool:
    """Wait until `done` returns something true. Returns whether it did in time."""
    deadline = time.monotonic() + patience_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _environment() -> dict[str, str]:
    """The environment of all programs of one cluster, with a token of its own."""
    return {
        **os.environ,
        "PYTHONPATH": python_path(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


def _start(python: str, host: str, role: list[str], cpus: int, environment: dict[str, str], log: IO[str]) -> None:
    """Start Ray's processes of a host; again if they were too slow, which they are on a busy machine (local.py)."""
    options = [*role, f"--node-ip-address={network.address(host)}", f"--num-cpus={cpus}", "--num-gpus=0"]
    options += ["--object-store-memory=100000000", "--disable-usage-stats"]
    command = network.inside(host, python, str(NODE), *options)
    told: dict[str, Any] = {"env": environment, "stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
    for left in reversed(range(TRIES)):
        if not subprocess.run(command, check=not left, timeout=START_S, **told).returncode:
            return
        network.end(host)


def _replicas_on(host: str, deployment: str) -> set[int]:
    title = f"ServeReplica:models:{deployment}".encode()
    return {pid for pid in network.processes(host) if title in _title(pid)}


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""
