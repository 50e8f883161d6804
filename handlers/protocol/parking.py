"""A worker that takes no requests for some seconds: scripts/scale parks a worker before TorchServe ends it.

TorchServe ends a worker at once, and the batch that it works on fails. A parked worker works on a request of the
management port, so no client's request is lost when it ends. TorchServe hands such a request to any of the workers.
So the request names the worker that is to park, by its process id; the others answer at once. While a worker is
parked, its process has the name PARKED. That tells the caller, who has no answer yet.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

HEADER = "x-park-worker"  # a process id
PARKED = "parked"  # 15 bytes at most: Linux cuts longer names
SECONDS = 10.0  # after which the worker serves again, if it was not ended
NAME = Path("/proc/self/comm")  # the name of this process's main thread


def park_if_named(pid: str, seconds: float = SECONDS) -> None:
    """Wait for `seconds` if this process has the id `pid`; "" names no process."""
    if pid != str(os.getpid()):
        return
    before = NAME.read_text(encoding="utf-8").strip()
    NAME.write_text(PARKED, encoding="utf-8")
    try:
        time.sleep(seconds)
    finally:
        NAME.write_text(before, encoding="utf-8")
