"""Network namespaces of this machine that stand for hosts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

BRIDGE, SUBNET = "rayhosts", "10.213.77"
HOSTS = ("rayhead", "rayone", "raytwo")
LOCK = Path("/run/rayhosts.lock")


def why_not() -> str | None:
    """Return why there can be no namespaces here; None if there can."""
    probe = f"rayprobe{os.getpid()}"
    try:
        ip("netns", "add", probe)
        try:
            ip("-n", probe, "link", "add", "probe", "type", "bridge")
        finally:
            ip("netns", "del", probe)
    except OSError as error:
        return f"no network namespaces here: {error}"
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"
    return None


def ip(*words: str) -> str:
    """Return what `ip` prints. Raises OSError, and CalledProcessError with its standard error."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def address(host: str) -> str:
    return f"{SUBNET}.{HOSTS.index(host) + 1}"


@contextlib.contextmanager
def namespaces(hosts: Sequence[str] = HOSTS) -> Iterator[None]:
    """A network with these hosts, and with this machine as .254. At the end, what runs in them is killed.

    Waits while another program has them, and removes what a killed one has left. Raises OSError, CalledProcessError.
    """
    with contextlib.ExitStack() as made, LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove(HOSTS)
        made.callback(_remove, hosts)
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{SUBNET}.254/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for host in hosts:
            ip("netns", "add", host)
            ip("link", "add", f"v-{host}", "type", "veth", "peer", "name", "eth0", "netns", host)
            ip("link", "set", f"v-{host}", "master", BRIDGE, "up")
            for words in (
                ("addr", "add", f"{address(host)}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("link", "set", "lo", "up"),
            ):
                ip("-n", host, *words)
        yield


def inside(host: str, *command: str) -> list[str]:
    """Return a command that runs another one on a host."""
    return ["ip", "netns", "exec", host, *command]


def processes(host: str) -> list[int]:
    """Return the process ids of what runs on a host; none if there is no such host."""
    found = subprocess.run(["ip", "netns", "pids", host], check=False, capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def end(host: str) -> None:
    """Kill what runs on a host."""
    for pid in processes(host):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def cut(host: str) -> None:
    """Take a host's network away."""
    ip("link", "set", f"v-{host}", "down")


def _remove(hosts: Sequence[str]) -> None:
    """Remove the hosts and the bridge, as far as they are there."""
    for host in hosts:
        end(host)
        # At once: a namespace goes when its last process has ended.
        _try("link", "del", f"v-{host}")
        _try("netns", "del", host)
    _try("link", "del", BRIDGE)


def _try(*words: str) -> None:
    with contextlib.suppress(subprocess.CalledProcessError):
        ip(*words)
