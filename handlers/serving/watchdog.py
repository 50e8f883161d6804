"""Ends a worker whose GPU call hangs, so that its requests are answered and TorchServe starts another worker."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator

logger = logging.getLogger(__name__)

EXIT_STATUS = 71
LOOK_S = 1.0
SPARE_S = 2.0  # that the timer waits longer than the thread
READING_S = 0.3  # for TorchServe to read the last lines: it stops reading when the worker has ended


class Watchdog:
    """Ends the process if a watched call takes longer than a limit.

    A thread of its own looks every second. A call may hang while it holds Python's lock, which stops that thread as
    well. A timer of faulthandler, which needs no lock, then ends the process. It is set when calls begin, and again
    at each look, and cleared when there are none: what runs between calls may take its time.

    Args:
        limit_s: seconds that one call may take; 0 for no limit.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s, self.timer = limit_s, False
        self.call: tuple[float, str] | None = None  # its begin, in time.monotonic()'s seconds, and what it does
        if limit_s:
            threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    @contextlib.contextmanager
    def watching(self, doing: str) -> Iterator[None]:
        """Limit the time of what runs inside. doing: for the log: "running the network"."""
        if not self.limit_s:
            yield
            return
        self.call = (time.monotonic(), doing)
        if not self.timer:
            self._set_timer(self.limit_s + SPARE_S)
        try:
            yield
        finally:
            self.call = None

    def _look(self) -> None:
        while True:
            time.sleep(min(LOOK_S, self.limit_s / 4))
            call = self.call
            if call is None:
                self._clear_timer()
            elif time.monotonic() - call[0] <= self.limit_s:
                self._set_timer(self.limit_s + SPARE_S)
            else:
                self._set_timer(SPARE_S)  # in case that logging hangs too
                end(f"{call[1]} took more than {self.limit_s:g} s (hangTimeout)")

    def _set_timer(self, seconds: float) -> None:
        self.timer = True
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.stdout)

    def _clear_timer(self) -> None:
        if self.timer:
            self.timer = False
            faulthandler.cancel_dump_traceback_later()
            if self.call is not None:  # it began meanwhile
                self._set_timer(self.limit_s + SPARE_S)


def end(why: str) -> None:
    """Write where each thread is, then one line with the reason, and end the process."""
    faulthandler.dump_traceback(file=sys.stdout, all_threads=True)
    logger.critical("%s, this worker ends; where its threads are stands above", why)
    sys.stdout.flush()
    time.sleep(READING_S)
    os._exit(EXIT_STATUS)  # sys.exit would end this thread alone
