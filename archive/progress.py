"""What packaging prints while it works."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Progress:
    """Numbered steps on the terminal, each with its time.

    Attributes:
        total: number of steps.
        done: steps begun so far.
        has_details: whether the current step has printed lines of its own.
    """

    total: int
    done: int = 0
    has_details: bool = False

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Print the step's title before the block, and its time in seconds after it."""
        self.done, self.has_details = self.done + 1, False
        print(f"  [{self.done}/{self.total}] {title} ...", end="", flush=True)
        started = time.monotonic()
        try:
            yield
        except BaseException:
            print(flush=True)  # the error's message gets a line of its own
            raise
        print("\n       " if self.has_details else "", f"{time.monotonic() - started:.1f} s", flush=True)

    def detail(self, text: str) -> None:
        """Print a line within a step."""
        self.has_details = True
        print(f"\n        {text}", end="", flush=True)

    def line(self, text: str) -> None:
        """Print a line between steps."""
        print(f"        {text}", flush=True)
