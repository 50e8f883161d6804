"""What TorchServe's front end sends to a worker, and a stand-in for it: a process that sends one batch repeatedly."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

END = struct.pack("!i", -1)
# Of Python's httpx, and those that the front end adds for /predictions.
HEADERS = {
    "host": "127.0.0.1:8080",
    "accept": "*/*",
    "accept-encoding": "gzip, deflate",
    "connection": "keep-alive",
    "user-agent": "python-httpx/0.28.1",
    "authorization": "Bearer abcdefgh",
}
ADDED = {"url_path": "", "explain": "False"}


@dataclass(frozen=True)
class Case:
    """Requests of one kind, as a load sends them.

    Args:
        bodies: taken in turn.
        headers: the client's own, beside HEADERS.
    """

    name: str
    bodies: Sequence[bytes]
    headers: Mapping[str, str]

    def message(self, size: int) -> bytes:
        """Return a batch of `size` requests in the format of ts/protocol/otf_message_handler.py."""
        return b"I" + b"".join(self._request(index) for index in range(size)) + END

    def _request(self, index: int) -> bytes:
        body = self.bodies[index % len(self.bodies)]
        kind = self.headers.get("content-type", "")
        headers = {**HEADERS, **self.headers, "content-length": str(len(body)), **ADDED}
        sent = b"".join(_field(name) + _field(value) for name, value in headers.items()) + END
        identity = f"01234567-89ab-cdef-0123-{index:012d}"
        return _field(identity) + sent + _field("body") + _field(kind) + _field(body) + END


def _field(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("!i", len(data)) + data


class FrontEnd:
    """A process that sends a message each time that the last one was answered.

    Args:
        message: of a batch.
        answer_size: bytes of the worker's answer to it.
    """

    def __init__(self, message: bytes, answer_size: int) -> None:
        self.worker, mine = socket.socketpair()
        self.pid = os.fork()
        if not self.pid:
            self.worker.close()
            _serve(mine, message, answer_size)
        mine.close()

    def close(self) -> None:
        """End the process."""
        self.worker.close()
        os.waitpid(self.pid, 0)


def _serve(connection: socket.socket, message: bytes, answer_size: int) -> None:
    try:
        while True:
            connection.sendall(message)
            left = answer_size
            while left:
                got = len(connection.recv(min(left, 1 << 20)))
                if not got:
                    os._exit(0)
                left -= got
    finally:
        os._exit(0)
