"""What is done to the server meanwhile: scaling, deploys, and killed workers, one after the other."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from demo import DIGITS, SENTENCES
from server.client import Client
from server.errors import ServerError
from updates.deployment import Deployment, Wishes
from updates.interrupts import Interrupts
from updates.scaling import scale

from soak.models import RERANKER, SECOND, SECOND_VERSION
from soak.traffic import Failure

READY_S = 600.0
SLACK_S = 1.0  # an answer may be on its way a moment longer than its worker lives
MOST = 2000


@dataclass(frozen=True)
class Change:
    """One change. start, end: time.monotonic(). problem: why it failed; None if it did not."""

    name: str
    model: str
    start: float
    end: float
    problem: str | None = None


@dataclass
class Changes:
    """Changes a server until `ended` is set. half: time.monotonic() from which `sentences` is no longer killed.

    A worker that is never ended shows whether memory grows. pause_s: between two changes.
    """

    client: Client
    store: Path
    pause_s: float
    half: float
    ended: threading.Event
    done: list[Change] = field(default_factory=list)
    killing: Change | None = None

    def run(self) -> None:
        """Do one change after the other."""
        for name, model, act in self._endless():
            if self.ended.wait(self.pause_s):
                return
            start, problem = time.monotonic(), None
            if name == "kill":
                self.killing = Change(name, model, start, float("inf"))
            try:
                act()
            except Exception as error:  # whatever it is, the next change comes, and the report names it
                problem = f"{type(error).__name__}: {error}"
            if len(self.done) < MOST:
                self.done.append(Change(name, model, start, time.monotonic(), problem))
            self.killing = None

    def excuses(self, failure: Failure) -> bool:
        """Whether the request was with a worker, or on its way to one, when that was killed."""
        kills = [change for change in (*self.done, self.killing) if change and change.name == "kill"]
        return failure.excusable and any(
            change.model == failure.model and failure.start <= change.end + SLACK_S and failure.end >= change.start
            for change in kills
        )

    def _endless(self) -> Iterator[tuple[str, str, Callable[[], None]]]:
        while True:
            yield "scale up", DIGITS, lambda: scale(self.client, DIGITS, 2, READY_S)
            yield "scale down", DIGITS, lambda: scale(self.client, DIGITS, 1, READY_S)
            yield "deploy", DIGITS, self._deploy
            yield "kill", DIGITS, lambda: self._kill(DIGITS)
            yield "scale up", SENTENCES, lambda: scale(self.client, SENTENCES, 2, READY_S)
            yield "scale down", SENTENCES, lambda: scale(self.client, SENTENCES, 1, READY_S)
            if time.monotonic() < self.half:
                yield "kill", SENTENCES, lambda: self._kill(SENTENCES)
            yield "kill", RERANKER, lambda: self._kill(RERANKER)

    def _deploy(self) -> None:
        """Deploy the version of the digits that does not serve."""
        serves = self.client.describe(DIGITS)["modelVersion"]
        file = self.store / f"{DIGITS if serves == SECOND_VERSION else SECOND}.mar"
        work = Deployment(self.client, Wishes(DIGITS, file, self.store), lambda line: None, Interrupts())
        work.plan()
        work.run()

    def _kill(self, model: str) -> None:
        """kill -9 the first worker, and wait until another one is ready in its place."""
        worker = self.client.describe(model)["workers"][0]
        os.kill(int(worker["pid"]), signal.SIGKILL)
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            workers = self.client.describe(model)["workers"]
            if all(item["status"] == "READY" for item in workers) and workers[0]["pid"] != worker["pid"]:
                return
            time.sleep(0.2)
        raise ServerError(f"no worker of {model} came back within {READY_S:g} s")
