"""Free ports of this machine."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from urllib.parse import urlsplit

from server.errors import ServerError

HOST = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """`count` different ports that nobody listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind((HOST, 0))
        return [int(item.getsockname()[1]) for item in sockets]


def why_taken(host: str | None, port: int | None) -> str | None:
    """Why a server cannot listen there, in the system's words; None if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            return getattr(error, "strerror", None) or str(error)
    return None


def check_free(address: str, config_file: Path) -> None:
    """Raises ServerError if nobody may listen at `address` (http://HOST:PORT), which config_file gives."""
    parts = urlsplit(address)
    if reason := why_taken(parts.hostname, parts.port):
        raise ServerError(
            f"{address} is taken ({reason}). If another TorchServe runs there, stop it; or serve on other ports: "
            f"scripts/serve --port 9080, or change the addresses in {config_file}"
        )
