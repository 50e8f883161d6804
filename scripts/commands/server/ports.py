"""Free ports of this machine."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from urllib.parse import urlsplit

from server.addresses import obstacle
from server.errors import ServerError

HOST = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """`count` different ports that nobody listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind((HOST, 0))
        return [int(item.getsockname()[1]) for item in sockets]


def why_taken(host: str, port: int) -> str | None:
    """Return why a server cannot listen there; None if it can."""
    found = obstacle(host, port)
    return None if found is None else found.reason


def check_free(address: str, config_file: Path) -> None:
    """Raises ServerError if nobody may listen at `address` (http://HOST:PORT), which config_file gives."""
    parts = urlsplit(address)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:  # it is above 65535
        host, port = None, None
    if host is None or port is None:
        raise ServerError(f"{address!r} is no address; wanted: http://HOST:PORT, in {config_file}")
    if found := obstacle(host, port):
        other_port = (
            "if another TorchServe runs there, stop it; or serve on other ports: scripts/serve --port 9080, or "
            f"change the addresses in {config_file}"
        )
        raise ServerError(f"{address}: {found.told(other_port, f'change this address in {config_file}')}")
