"""Ctrl-C and SIGTERM at safe points only, so that what was begun can be finished or undone."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """Somebody has asked for an end."""


class Interrupts:
    """Remembers that an end was asked for; `pause` and `check` raise then. shield: nothing raises any more."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.shielded = False

    def listen(self) -> None:
        """Take the signals of this process."""
        for number in SIGNALS:
            signal.signal(number, self._ask)

    def check(self) -> None:
        """Raises Interrupted if an end was asked for."""
        if self.asked.is_set() and not self.shielded:
            raise Interrupted

    def pause(self, seconds: float) -> None:
        """Sleep. Raises Interrupted as soon as an end is asked for."""
        if self.shielded:
            threading.Event().wait(seconds)
        else:
            self.asked.wait(seconds)
            self.check()

    def shield(self) -> None:
        """Let what follows run to its end."""
        self.shielded = True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked.is_set():
            print("it is being undone; this takes a moment", file=sys.stderr, flush=True)
        self.asked.set()
