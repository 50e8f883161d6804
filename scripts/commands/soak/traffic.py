"""Clients that ask mixed questions on kept connections, and check every answer."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from server.http import Answer

from soak.known import Known, refusal
from soak.questions import Form, Message

TIMEOUT_S = 150.0  # TorchServe ends a batch after 120 s: a client that waits longer has been forgotten
BAD_SHARE, HANG_UP_SHARE = 0.12, 0.03
MOST_FAILURES = 5000


@dataclass(frozen=True)
class Failure:
    """A request that was not answered as it should be.

    start, end: time.monotonic(). model: that was asked; "" for none. form: of the request. what: in words, without
    content. excusable: a worker that is killed may cause it.
    """

    start: float
    end: float
    model: str
    form: str
    what: str
    excusable: bool


@dataclass
class Tally:
    """What all clients together saw; safe for several threads. slowest_s: of the answers that were right."""

    right: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    hung_up: int = 0
    failures: list[Failure] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add_right(self, form: str, seconds: float, refused: bool = False) -> None:
        with self.lock:
            (self.refused if refused else self.right)[form] += 1
            self.seconds += seconds
            self.slowest_s = max(self.slowest_s, seconds)

    def add_failure(self, failure: Failure) -> None:
        with self.lock:
            self.failed += 1
            if len(self.failures) < MOST_FAILURES:
                self.failures.append(failure)

    def add_hang_up(self) -> None:
        with self.lock:
            self.hung_up += 1

    @property
    def answered(self) -> int:
        """Requests that were answered as they should be."""
        with self.lock:
            return self.right.total() + self.refused.total()


@dataclass
class Connection:
    """One kept-alive connection to the inference port. A connection that broke or had an error is opened anew."""

    address: str
    token: str
    opened: http.client.HTTPConnection | None = None

    def ask(self, message: Message) -> Answer:
        """Send a request. Raises OSError or http.client.HTTPException if there is no whole answer."""
        connection = self.opened or self._open()
        try:
            connection.request("POST", message.path, message.body, self.headers(message))
            with connection.getresponse() as answer:
                found = Answer(answer.status, {}, answer.read())
        except BaseException:
            self.close()
            raise
        if found.status >= 400:  # TorchServe closes the connection after an error
            self.close()
        return found

    def headers(self, message: Message) -> dict[str, str]:
        sent = {"Authorization": f"Bearer {self.token}", **message.headers}
        return {name: value for name, value in sent.items() if value}

    def close(self) -> None:
        if self.opened is not None:
            self.opened.close()
            self.opened = None

    def _open(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.address)
        self.opened = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=TIMEOUT_S)
        return self.opened


@dataclass
class Traffic:
    """All clients. `run` is one of them; several threads may run it.

    inputs: by model, the indices that may be asked. bad: by name, the model and the request. rate: requests/s of all
    clients together; 0: as many as are answered.
    """

    address: str
    token: str
    forms: Sequence[Form]
    inputs: Mapping[str, Sequence[int]]
    bad: Mapping[str, tuple[str, Message]]
    known: Known
    clients: int
    rate: float
    tally: Tally = field(default_factory=Tally)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self, seed: int) -> None:
        """Ask until `ended` is set."""
        chance = random.Random(seed)  # noqa: S311 - a choice of questions, no secret
        connection = Connection(self.address, self.token)
        while not self.ended.is_set():
            begun = time.monotonic()
            try:
                self._step(chance, connection)
            except Exception as error:  # a fault of the soak itself must not end a client unseen
                self._fail(begun, "", "the soak itself", type(error).__name__, False)
            if self.rate:
                self.ended.wait(max(0.0, chance.uniform(0, 2) * self.clients / self.rate - time.monotonic() + begun))
        connection.close()

    def _step(self, chance: random.Random, connection: Connection) -> None:
        kind = chance.random()
        if kind < HANG_UP_SHARE:
            self._hang_up(chance, connection)
        elif kind < HANG_UP_SHARE + BAD_SHARE:
            self._bad(chance, connection)
        else:
            form = chance.choice(self.forms)
            which = chance.sample(self.inputs[form.model], form.inputs)
            self._good(form, which, connection)

    def _good(self, form: Form, which: Sequence[int], connection: Connection) -> None:
        start = time.monotonic()
        answer = self._answer(form.model, form.name, form.write(which), connection, start)
        if answer is None:
            return
        if answer.status != 200:
            self._fail(start, form.model, form.name, f"status {answer.status}", answer.status >= 500)
        elif problem := self.known.problem(form, which, answer.body):
            self._fail(start, form.model, form.name, problem, False)
        else:
            self.tally.add_right(form.name, time.monotonic() - start)

    def _bad(self, chance: random.Random, connection: Connection) -> None:
        name = chance.choice(list(self.bad))
        model, message = self.bad[name]
        start = time.monotonic()
        answer = self._answer(model, name, message, connection, start)
        if answer is None:
            return
        if refusal(answer) == self.known.refusals[name]:
            self.tally.add_right(name, time.monotonic() - start, refused=True)
        else:
            excusable = answer.status >= 500
            self._fail(start, model, name, f"status {answer.status}, not its own refusal", excusable)

    def _answer(self, model: str, name: str, message: Message, connection: Connection, start: float) -> Answer | None:
        try:
            return connection.ask(message)
        except TimeoutError:
            self._fail(start, model, name, f"no answer within {TIMEOUT_S:g} s", False)
        except (OSError, http.client.HTTPException) as error:
            self._fail(start, model, name, f"no whole answer ({type(error).__name__})", True)
        return None

    def _fail(self, start: float, model: str, form: str, what: str, excusable: bool) -> None:
        self.tally.add_failure(Failure(start, time.monotonic(), model, form, what, excusable))

    def _hang_up(self, chance: random.Random, connection: Connection) -> None:
        """Send a request, or a part of one, and go without an answer; sometimes with a reset."""
        form = chance.choice(self.forms)
        message = form.write(chance.sample(self.inputs[form.model], form.inputs))
        head = f"POST {message.path} HTTP/1.1\r\nHost: soak\r\nContent-Length: {len(message.body)}\r\n"
        lines = "".join(f"{name}: {value}\r\n" for name, value in connection.headers(message).items())
        sent = f"{head}{lines}\r\n".encode() + message.body
        parts = urlsplit(self.address)
        try:
            with socket.create_connection((str(parts.hostname), parts.port), timeout=10) as opened:
                opened.sendall(sent[: len(sent) if chance.random() < 0.5 else chance.randrange(1, len(sent))])
                if chance.random() < 0.5:
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError as error:
            now = time.monotonic()
            self.tally.add_failure(Failure(now, now, "", "hang up", f"no connection ({type(error).__name__})", False))
        else:
            self.tally.add_hang_up()
