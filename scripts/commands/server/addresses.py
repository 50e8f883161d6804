"""Why a server cannot listen at an address of this machine, and the way out."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from pathlib import Path

ALL = ("0.0.0.0", "::")  # noqa: S104 - what people type for all addresses
HIGHEST_PORT = 65535
PRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


@dataclass(frozen=True)
class Obstacle:
    """What keeps a server from listening.

    Args:
        reason: a sentence without its full stop.
        is_port: whether another port would do; if not, another address is needed.
    """

    reason: str
    is_port: bool

    def told(self, other_port: str, other_host: str) -> str:
        """Return the reason with the way out that fits it."""
        return f"{self.reason}; {other_port if self.is_port else other_host}"


def obstacle(host: str, port: int) -> Obstacle | None:
    """Return what keeps a server from listening there; None if it can.

    Args:
        host: an IPv4 or IPv6 address, or a name that this machine can look up.
    """
    if not 1 <= port <= HIGHEST_PORT:
        return Obstacle(f"{port} is no port; wanted: 1 to {HIGHEST_PORT}", is_port=True)
    if not host.strip():
        return Obstacle(f"no address is named. {_which()}", is_port=False)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return Obstacle(
            f"{host!r} is no address, and no name that this machine can look up. {_which()}", is_port=False
        )
    for family, kind, protocol, _, place in found[:1]:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(place)
            except (OSError, OverflowError) as error:
                return _explained(error, host, port)
    return None


def own() -> list[str]:
    """Return the IPv4 addresses of this machine, its own loopback first."""
    import psutil  # not needed as long as an address is right

    every = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries
             if entry.family == socket.AF_INET]  # fmt: skip
    return sorted(dict.fromkeys(every), key=lambda address: (not address.startswith("127."), every.index(address)))


def _explained(error: Exception, host: str, port: int) -> Obstacle:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return Obstacle(f"port {port} of {host} is taken: another program listens there", is_port=True)
    if number == errno.EADDRNOTAVAIL:
        return Obstacle(f"this machine has no address {host}. {_which()}", is_port=False)
    if number in (errno.EACCES, errno.EPERM):
        return Obstacle(f"this user may not listen at port {port}; ports from {_lowest()} are for all", is_port=True)
    return Obstacle(f"no server can listen at {host}, port {port}: {_words(error)}", is_port=number is None)


def _which() -> str:
    return f"Its addresses are {', '.join(own())}, and {ALL[0]} stands for all of them"


def _lowest() -> int:
    try:
        return int(PRIVILEGED.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 1024


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
