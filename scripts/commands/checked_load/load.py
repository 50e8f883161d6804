"""Sends requests from several threads, each on a connection that it keeps, and checks every answer."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import httpx
from server import tokens
from server.client import Client

from checked_load.samples import Sample

RIGHT, WRONG, HUNG, DROPPED = "right", "WRONG", "HUNG", "dropped"
PAUSE_S = 0.02  # after a failure, so that a server that refuses is not flooded


class Outcome(NamedTuple):
    """began, ended: in time.monotonic()'s seconds. kind: RIGHT, WRONG, HUNG, DROPPED, or the status of a refusal."""

    began: float
    ended: float
    kind: str


@dataclass
class Load:
    """Requests to one model.

    connections: how many are kept, with one request at a time on each. hung_s: a request without an answer after so
    many seconds counts as HUNG. pause_s: between an answer and the next request of a connection.
    """

    client: Client
    model: str
    samples: Sequence[Sample]
    connections: int = 8
    hung_s: float = 60.0
    pause_s: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list, init=False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send requests meanwhile, then wait for the last answers."""
        stop = threading.Event()
        threads = [
            threading.Thread(target=self._send, args=(index, stop), daemon=True) for index in range(self.connections)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def counts(self) -> Counter[str]:
        """How many requests came to which end."""
        return Counter(outcome.kind for outcome in self.outcomes)

    def seconds_to_good(self, moment: float) -> float | None:
        """Seconds from a moment to the next right answer to a request that began after it; None if none came."""
        ends = [outcome.ended for outcome in self.outcomes if outcome.kind == RIGHT and outcome.began >= moment]
        return min(ends) - moment if ends else None

    def longest_s(self) -> float:
        """The longest time that a request waited for its answer, of any kind."""
        return max((outcome.ended - outcome.began for outcome in self.outcomes), default=0.0)

    def _send(self, first: int, stop: threading.Event) -> None:
        url = f"{self.client.inference}/predictions/{self.model}"
        headers = tokens.bearer(self.client.token("inference"))
        with httpx.Client(trust_env=False, timeout=self.hung_s, headers=headers) as asking:
            number = first
            while not stop.is_set():
                sample, began = self.samples[number % len(self.samples)], time.monotonic()
                kind = _ask(asking, url, sample)
                self.outcomes.append(Outcome(began, time.monotonic(), kind))
                number += self.connections + 1  # each connection sends each sample
                time.sleep(self.pause_s if kind == RIGHT else max(PAUSE_S, self.pause_s))


def _ask(asking: httpx.Client, url: str, sample: Sample) -> str:
    headers = {"Content-Type": sample.content_type or "application/octet-stream"}
    try:
        answer = asking.post(url, content=sample.body, headers=headers)
    except httpx.TimeoutException:
        return HUNG
    except httpx.HTTPError:
        return DROPPED
    if answer.status_code != 200:
        return str(answer.status_code)
    try:
        return RIGHT if sample.fits(answer.json()) else WRONG
    except ValueError:
        return WRONG
