"""What the signals do that end scripts/serve-ray."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from ray_host import local

# A shell starts background jobs with SIGINT ignored; a terminal that closes sends SIGHUP.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HOW = (
    f"new requests get a 503, and those on their way {local.PATIENCE_S:g} s at most to be answered; "
    "press Ctrl-C again to end at once"
)
AT_ONCE = 130  # exit status, as a shell has it for SIGINT


def listen() -> None:
    """Let a signal raise KeyboardInterrupt in the main thread."""
    for number in SIGNALS:
        signal.signal(number, _interrupt)


def listen_again() -> None:
    """Let a signal end this process and all that it has started, without waiting for anything."""
    for number in SIGNALS:
        signal.signal(number, _end)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    print("ending at once", file=sys.stderr, flush=True)
    local.forget()
    os._exit(AT_ONCE)
