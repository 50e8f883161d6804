"""Reads what TorchServe's front end sends in large pieces, in the place of its worker's function for small ones.

TorchServe 0.12.0's worker asks the socket for every length and every value by itself. A request with ten headers
takes 50 system calls, and more CPU time than this package's own reading (scripts/research/request_cost.py).
The format stays TorchServe's business: its code asks for as many bytes as before, and gets the same ones.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Protocol

logger = logging.getLogger(__name__)

VERSION = "0.12.0"  # of TorchServe, whose function `_retrieve_buffer` is known
PIECE = 1 << 14  # bytes that are asked for at once


class Connection(Protocol):
    """What is used of a blocking socket."""

    def recv(self, size: int, /) -> bytes: ...
    def recv_into(self, buffer: Any, size: int = 0, /) -> int: ...


class ReadAhead:
    """Hands out the bytes of one connection, in order; what was read beyond them stays for the next call."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.data, self.at = bytearray(), 0  # what was read, and how much of it is handed out

    def __call__(self, connection: Connection, length: int) -> bytearray:
        """Return the next `length` bytes. Raises SystemExit if the front end has closed the connection."""
        if connection is not self.connection:
            self.connection, self.data, self.at = connection, bytearray(), 0
        end = self.at + length
        if end > len(self.data):
            return self._read(connection, length)
        found, self.at = self.data[self.at : end], end
        return found

    def _read(self, connection: Connection, length: int) -> bytearray:
        found = self.data[self.at :]
        if length - len(found) >= PIECE:  # a large body goes where it belongs, without a copy
            self.data, self.at = bytearray(), 0
            return _filled(connection, found, length)
        while len(found) < length:
            found += _some(connection.recv(PIECE))
        self.data, self.at = found, length
        return found[:length]


def _filled(connection: Connection, begun: bytearray, length: int) -> bytearray:
    """Return `length` bytes that begin with those that were read already."""
    whole = bytearray(length)
    have = len(begun)
    whole[:have] = begun
    with memoryview(whole) as view:
        while have < length:
            have += _some(connection.recv_into(view[have:]))
    return whole


def _some(received: Any) -> Any:
    """Return what was received, bytes or their number. Raises SystemExit for none, as TorchServe's worker does."""
    if not received:
        logger.info("Frontend disconnected.")
        sys.exit(0)
    return received


def read_ahead() -> str | None:
    """Have TorchServe's worker read ahead from now on, and return what was chosen; None in any other process."""
    messages: Any = sys.modules.get("ts.protocol.otf_message_handler")
    if messages is None or not hasattr(sys.modules.get("__main__"), "TorchModelServiceWorker"):
        return None
    found = str(getattr(sys.modules["ts"], "__version__", "unknown")).strip()
    if found != VERSION or not hasattr(messages, "_retrieve_buffer"):
        chosen = f"by TorchServe {found}, value by value: only {VERSION} is known well enough to be helped"
    else:
        messages._retrieve_buffer = ReadAhead()
        chosen = f"up to {PIECE} bytes at once"
    logger.info("requests are read %s", chosen)
    return chosen
