"""Lone answers, and checks of later ones against them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from torchserve import request

from serving_bench.answers import difference
from serving_bench.load import Endpoint, GeneratorError, Load

MOST = 8  # bodies whose answers are kept
TIMEOUT_S = 120.0
PAUSE_S = 0.02  # between two checks under load


@dataclass(frozen=True)
class Lone:
    """What a server answered when nobody else asked: the first bodies of a load, one after another."""

    bodies: Sequence[bytes]
    answers: Sequence[bytes]

    @property
    def mean_bytes(self) -> int:
        return round(sum(map(len, self.answers)) / len(self.answers))


def ask(endpoint: Endpoint, load: Load) -> Lone:
    """Raises GeneratorError with the server's words if it does not answer 200."""
    bodies, answers = load.bodies[:MOST], []
    for body in bodies:
        answer = _request(endpoint, load, body)
        if answer[0] != 200:
            said = answer[1][:500].decode(errors="replace")
            raise GeneratorError(f"{endpoint.url} answered {answer[0]} to {load.name}: {said}")
        answers.append(answer[1])
    return Lone(bodies, answers)


def _request(endpoint: Endpoint, load: Load, body: bytes) -> tuple[int, bytes]:
    headers = {**endpoint.headers, **load.headers}
    answer = request("POST", endpoint.url, body, headers, TIMEOUT_S)
    return answer.status, answer.body


@dataclass
class Checker:
    """Asks the lone requests again and again, beside a load, until the `with` block ends.

    right, refused: counts; an overloaded server may refuse. wrong: what differed.
    """

    endpoint: Endpoint
    load: Load
    lone: Lone
    right: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    def __enter__(self) -> Checker:
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
        """Ask each lone request once more."""
        for place in range(len(self.lone.bodies)):
            self._check_one(place)

    def _check(self) -> None:
        place = 0
        while not self._done.wait(PAUSE_S):
            self._check_one(place % len(self.lone.bodies))
            place += 1

    def _check_one(self, place: int) -> None:
        try:
            status, answer = _request(self.endpoint, self.load, self.lone.bodies[place])
        except OSError:
            self.refused += 1
            return
        if status != 200:
            self.refused += 1
        elif said := difference(answer, self.lone.answers[place]):
            self.wrong.append(said)
        else:
            self.right += 1
