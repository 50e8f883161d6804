"""One process of the generator `streams`: HTTP/1.1 over asyncio, in a closed or an open loop.

It runs as a program of its own: it reads a job (JSON) from a file, prints "ready" once its connections stand, reads
the moment to begin from its standard input, and writes what it saw as JSON. It reads answers with a Content-Length;
others count as a failure, "unreadable".

It speaks HTTP itself, where all other scripts use httpx: a request is bytes made once and written in one call, and of
an answer only status and length are read. The CPU time that httpx spends on each request would limit what can be
measured, because the generator shares the machine with the server. It needs the standard library alone, so that it
starts quickly.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

CONNECT_AT_ONCE = 64
MOST_KEPT = 4096  # bytes of an error's body
CLOSED_BY_SERVER, UNREADABLE, UNCONNECTED, LATE = "closed by the server", "unreadable", "connect", "timeout"


class Connection(asyncio.Protocol):
    """One connection, one request at a time.

    answered: called with the status, 0 if there is no answer and the connection is lost. server: index of the
    server at its other end. due: when the request in flight was to be sent, in time.monotonic()'s seconds; None if
    none is in flight.
    """

    def __init__(self, answered: Callable[[Connection, int], None], server: int) -> None:
        self.answered = answered
        self.server = server
        self.due: float | None = None
        self.open = False
        self.failure = CLOSED_BY_SERVER
        self.head = b""
        self.left: int | None = None
        self.status = 0
        self.body = b""  # the beginning of an error's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.open = True

    def send(self, request: bytes, due: float) -> None:
        self.due, self.head, self.left = due, b"", None
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.left is None:
            self.head += data
            head, separator, rest = self.head.partition(b"\r\n\r\n")
            if not separator:
                return
            try:
                self.status, self.left = read_head(head)
            except ValueError:
                self.failure = UNREADABLE
                self.transport.abort()
                return
            data = rest
            self.body = b""
        self.left -= len(data)
        if not 200 <= self.status < 300:
            self.body += data[: MOST_KEPT - len(self.body)]
        if self.left <= 0:
            self.answered(self, self.status)

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self.due is not None:
            self.answered(self, 0)


def read_head(head: bytes) -> tuple[int, int]:
    """Status and Content-Length of an answer. Raises ValueError if it has no Content-Length."""
    first, *lines = head.split(b"\r\n")
    for line in lines:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(first.split(b" ")[1]), int(value)
    raise ValueError("an answer without Content-Length")


class Server:
    """One of the servers that get the load, and the head of its requests."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        lines = [f"POST {path} HTTP/1.1", f"Host: {parts.netloc}", *(f"{k}: {v}" for k, v in headers.items())]
        self.head = "\r\n".join(lines)

    def request(self, body: bytes) -> bytes:
        return f"{self.head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Run:
    """Does a job, and counts what came of it. Connections go to one server after another, so each gets as many."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.servers = [Server(**server) for server in job["servers"]]
        bodies = [Path(file).read_bytes() for file in job["bodies"]]
        self.requests = [[server.request(body) for body in bodies] for server in self.servers]
        self.turn: int = job["index"] % len(bodies)
        self.next_server: int = job["first"]
        self.statuses: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.bodies: dict[str, str] = {}  # of the first error with each status
        self.latencies_us: list[int] = []
        self.late_us: list[int] = []
        self.idle: deque[Connection] = deque()  # the longest idle first: so each server gets as many requests
        self.waiting: deque[float] = deque()
        self.connections = 0
        self.in_flight = 0
        self.begin = self.end = 0.0

    async def connect(self, count: int) -> None:
        """Open `count` connections. Raises OSError."""
        while count > 0:
            together = min(count, CONNECT_AT_ONCE)
            self.idle += await asyncio.gather(*(self._connection() for _ in range(together)))
            self.connections += together
            count -= together

    async def _connection(self, server: int | None = None) -> Connection:
        """Open a connection to a server; None: to the next in turn."""
        if server is None:
            server = self.next_server % len(self.servers)
            self.next_server += 1
        loop = asyncio.get_running_loop()
        at = self.servers[server]
        _, connection = await loop.create_connection(lambda: Connection(self.answered, server), at.host, at.port)
        return connection

    def next_request(self, server: int) -> bytes:
        self.turn = (self.turn + 1) % len(self.requests[server])
        return self.requests[server][self.turn]

    def send(self, connection: Connection, due: float) -> None:
        self.in_flight += 1
        self.late_us.append(round((time.monotonic() - due) * 1e6))
        connection.send(self.next_request(connection.server), due)

    def answered(self, connection: Connection, status: int) -> None:
        """Count an answer (status 0: none came), and have the connection go on."""
        now = time.monotonic()
        due, connection.due = connection.due, None
        self.in_flight -= 1
        if due is not None and (
            self.job["rate"] or now <= self.end
        ):  # a closed loop counts what came within its time
            if status:
                self.statuses[str(status)] += 1
                if connection.body:
                    self.bodies.setdefault(str(status), connection.body.decode(errors="replace"))
                self.latencies_us.append(round((now - due) * 1e6))
            else:
                self.failures[connection.failure] += 1
        if connection.open:
            self._go_on(connection, now)
        else:
            self.connections -= 1
            self._replace(connection.server)

    def _go_on(self, connection: Connection, now: float) -> None:
        if self.waiting:
            self.send(connection, self.waiting.popleft())
        elif not self.job["rate"] and now < self.end:
            self.send(connection, now)
        else:
            self.idle.append(connection)

    def _replace(self, server: int | None = None) -> None:
        if time.monotonic() < self.end:
            self.connections += 1
            self.opening = asyncio.ensure_future(self._open_another(server))

    async def _open_another(self, server: int | None) -> None:
        try:
            connection = await self._connection(server)
        except OSError:
            self.connections -= 1
            self.failures[UNCONNECTED] += 1
            return
        self._go_on(connection, time.monotonic())

    async def closed(self) -> None:
        """Each connection sends its next request as soon as its last is answered."""
        clients, self.idle = self.idle, deque()
        for connection in clients:
            self.send(connection, time.monotonic())
        await asyncio.sleep(self.end - time.monotonic())

    async def open(self) -> None:
        """Send at random moments (a Poisson process), whether or not earlier requests are answered."""
        chance = random.Random(self.job["index"])  # noqa: S311 - the same moments in every run
        due = self.begin
        while (due := due + chance.expovariate(self.job["rate"])) < self.end:
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            self.submit(due)
        patience = time.monotonic() + self.job["timeout_s"]
        while (self.in_flight or self.waiting) and time.monotonic() < patience:
            await asyncio.sleep(0.01)
        self.failures[LATE] += self.in_flight + len(self.waiting)

    def submit(self, due: float) -> None:
        """Send on an idle connection, or as soon as there is one."""
        while self.idle:
            connection = self.idle.popleft()
            if connection.open:
                self.send(connection, due)
                return
            self.connections -= 1
        self.waiting.append(due)
        if self.connections < self.job["connections"]:
            self._replace()

    async def run(self) -> None:
        await self.connect(self.job["connections"] if not self.job["rate"] else min(self.job["connections"], 32))
        print("ready", flush=True)
        self.begin = float(await asyncio.to_thread(sys.stdin.readline))
        self.end = self.begin + self.job["seconds"]
        await asyncio.sleep(self.begin - time.monotonic())
        await (self.open() if self.job["rate"] else self.closed())

    def found(self) -> dict[str, Any]:
        return {
            "statuses": self.statuses,
            "bodies": self.bodies,
            "failures": {kind: count for kind, count in self.failures.items() if count},
            "latencies_us": self.latencies_us,
            "late_us": self.late_us if self.job["rate"] else [],
            "cpu_seconds": time.process_time(),
        }


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    run = Run(job)
    try:
        asyncio.run(run.run())
    except (OSError, ValueError) as error:  # the parent ended, or nobody listens
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    Path(job["out"]).write_text(json.dumps(run.found()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
