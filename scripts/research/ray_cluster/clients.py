"""Clients that ask hosts for digits without a pause, and what they get."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from server.paths import ROOT

from ray_cluster import network
from ray_cluster.cluster import HTTP_PORT

SAMPLES = ROOT / "archive" / "digits" / "samples"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PATH = "/predictions/digits"
RIGHT = "200"
REQUEST_S = 120


def connection(host: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(network.address(host), HTTP_PORT, timeout=REQUEST_S)


def ask(digit: int, host: str, kept: http.client.HTTPConnection | None = None) -> tuple[str, bool]:
    """Ask for a digit. Returns the outcome, and whether it is no wrong answer.

    The outcome is "200"; the status and the type of an error in JSON ("503 ReplicaGone"), or the status and "no
    JSON"; or the name of an exception.

    Args:
        host: that is asked.
        kept: a connection to it, which stays open; None for one of its own.
    """
    used = kept or connection(host)
    try:
        used.request("POST", PATH, _picture(WORDS[digit]), {"Content-Type": "image/png"})
        answer = used.getresponse()
        return _outcome(answer.status, answer.read(), str(digit))
    except (OSError, http.client.HTTPException) as error:
        used.close()
        return type(error).__name__, True
    finally:
        if kept is None:
            used.close()


class Load:
    """Clients that ask hosts in turn.

    Args:
        hosts: that are asked.
        count: of clients.
        half_keep: whether half of the clients keep their connections. All others take a new one for each request.
    """

    def __init__(self, hosts: list[str], count: int, *, half_keep: bool = True) -> None:
        self.half_keep = half_keep
        self.hosts, self.lock, self._ends = hosts, threading.Lock(), threading.Event()
        self.outcomes: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.wrong = 0
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def taken(self) -> dict[str, Any]:
        """Return what came since the last call: `statuses` (how often each), `seconds` (of each), `wrong`."""
        with self.lock:
            found = {"statuses": dict(self.outcomes), "seconds": self.seconds, "wrong": self.wrong}
            self.outcomes, self.seconds, self.wrong = Counter(), [], 0
        return found

    def _ask(self, number: int) -> None:
        kept = {host: connection(host) for host in self.hosts} if self.half_keep and number % 2 else {}
        while not self._ends.is_set():
            number += 1
            host = self.hosts[number % len(self.hosts)]
            started = time.monotonic()
            outcome, right = ask(number % 10, host, kept.get(host))
            with self.lock:
                self.outcomes[outcome] += 1
                self.wrong += not right
                self.seconds.append(time.monotonic() - started)
        for each in kept.values():
            each.close()


def _outcome(status: int, body: bytes, digit: str) -> tuple[str, bool]:
    try:
        told = json.loads(body)
        if status == http.HTTPStatus.OK:
            return RIGHT, told[0]["label"] == digit
        return (f"{status} {told['type']}" if told["code"] == status else f"{status} no JSON"), True
    except (ValueError, LookupError, TypeError):
        return f"{status} no JSON", status != http.HTTPStatus.OK


_pictures: dict[str, bytes] = {}


def _picture(word: str) -> bytes:
    if word not in _pictures:
        _pictures[word] = Path(SAMPLES / f"{word}.png").read_bytes()
    return _pictures[word]
