"""Reference answers: those to requests sent alone; and checks of later answers against them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, product
from types import TracebackType

from server.http import request

from serving_bench.answer_comparison import difference
from serving_bench.generator import Endpoint, GeneratorError, Load

MOST = 8  # bodies that are sent as references
TIMEOUT_S = 120.0
PAUSE_S = 0.02  # between two checks under load


@dataclass(frozen=True)
class ReferenceAnswers:
    """The first bodies of a load, and what the server answered when it got them one after another."""

    bodies: Sequence[bytes]
    answers: Sequence[bytes]

    @property
    def mean_bytes(self) -> int:
        return round(sum(map(len, self.answers)) / len(self.answers))


def ask(endpoint: Endpoint, load: Load) -> ReferenceAnswers:
    """Send the first bodies of a load to the (first) server, and keep the answers.

    Raises GeneratorError with the server's message if it does not answer 200, OSError if it does not answer.
    """
    bodies, answers = load.bodies[:MOST], []
    for body in bodies:
        answer = _request(endpoint, load, body)
        if answer[0] != 200:
            message = answer[1][:500].decode(errors="replace")
            raise GeneratorError(f"{endpoint.url} answered {answer[0]} to {load.name}: {message}")
        answers.append(answer[1])
    return ReferenceAnswers(bodies, answers)


def _request(endpoint: Endpoint, load: Load, body: bytes) -> tuple[int, bytes]:
    headers = {**endpoint.headers, **load.headers}
    answer = request("POST", endpoint.url, body, headers, TIMEOUT_S)
    return answer.status, answer.body


@dataclass
class AnswerChecker:
    """Sends the reference requests again and again during a load, until the `with` block ends.

    right, refused: how many; an overloaded server may refuse. wrong: what differed, one entry per wrong answer.
    """

    endpoint: Endpoint
    load: Load
    reference: ReferenceAnswers
    right: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    def __enter__(self) -> AnswerChecker:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._check, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._done.set()
        if kind is None:
            self._thread.join()

    def once(self) -> None:
        """Send each reference request once more, to every server."""
        for endpoint in self.endpoint.each:
            for index in range(len(self.reference.bodies)):
                self._check_one(endpoint, index)

    def _check(self) -> None:
        for endpoint, index in cycle(product(self.endpoint.each, range(len(self.reference.bodies)))):
            if self._done.wait(PAUSE_S):
                return
            self._check_one(endpoint, index)

    def _check_one(self, endpoint: Endpoint, index: int) -> None:
        try:
            status, answer = _request(endpoint, self.load, self.reference.bodies[index])
        except OSError:
            self.refused += 1
            return
        if status != 200:
            self.refused += 1
        elif reason := difference(answer, self.reference.answers[index]):
            self.wrong.append(reason)
        else:
            self.right += 1
