"""What packaging prints while it works."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

INDENT = " " * 8
EVERY_S = 1.0  # between two looks of a line at a terminal


class LiveLine:
    """Says on the standard error what is being waited for: what, and for how many seconds.

    At a terminal that is one line, which is written again and again, and is gone at the end. In a pipe or a log each
    item is a line of its own.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.is_terminal = self.stream.isatty()
        self.text, self.since = "", 0.0
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None
        self.lock = threading.Lock()

    def show(self, text: str) -> None:
        """Show what is being waited for now."""
        with self.lock:
            self.text, self.since = text, time.monotonic()
        if not self.is_terminal:
            print(f"{INDENT}{text}", file=self.stream, flush=True)
        elif self.thread is None:
            self.ended.clear()
            self.thread = threading.Thread(target=self._write_again, daemon=True)
            self.thread.start()

    def close(self) -> None:
        """Say no more; a terminal's line is emptied."""
        if self.thread is not None:
            self.ended.set()
            self.thread.join()
            self.thread = None
            print("\r\033[K", end="", file=self.stream, flush=True)

    def _write_again(self) -> None:
        while True:
            with self.lock:
                line = f"{self.text}, {time.monotonic() - self.since:.0f} s"
            print(f"\r\033[K{INDENT}{line}", end="", file=self.stream, flush=True)
            if self.ended.wait(EVERY_S):
                return


@dataclass
class Progress:
    """Numbered steps on the terminal, each with its time.

    Attributes:
        total: number of steps.
        done: steps begun so far.
        has_details: whether the current step has printed lines of its own.
        is_at_start: whether the next word begins a line.
        live: says what the current step is doing.
    """

    total: int
    done: int = 0
    has_details: bool = False
    is_at_start: bool = False
    live: LiveLine = field(default_factory=LiveLine)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Print the step's title before the block, and its time in seconds after it."""
        self.done, self.has_details, self.is_at_start = self.done + 1, False, False
        print(f"  [{self.done}/{self.total}] {title} ...", end="", flush=True)
        started = time.monotonic()
        try:
            yield
        except BaseException:
            self.live.close()
            print(flush=True)  # the error's message gets a line of its own
            raise
        self.live.close()
        self._new_line(INDENT[1:] if self.has_details else "")
        print("", f"{time.monotonic() - started:.1f} s", flush=True)

    def detail(self, text: str) -> None:
        """Print a line within a step."""
        self.live.close()
        self.has_details = True
        self._new_line(f"{INDENT}{text}")

    def now(self, text: str) -> None:
        """Say what the step is doing, until the next word or the end of the step."""
        self.has_details = True
        if not self.is_at_start:
            print(flush=True)  # what was printed keeps its line
            self.is_at_start = True
        self.live.show(text)

    def _new_line(self, text: str) -> None:
        """Begin a line with the text; without a text the line that was begun goes on."""
        print(f"{'' if self.is_at_start or not text else chr(10)}{text}", end="", flush=True)
        self.is_at_start = False

    def line(self, text: str) -> None:
        """Print a line between steps."""
        print(f"{INDENT}{text}", flush=True)
