"""How far the replicas are, while they load: a load that never ends says nothing by itself."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

EVERY_S = 30.0


@contextlib.contextmanager
def shown(applications: Callable[[], Mapping[str, Any]], app: str, every_s: float = EVERY_S) -> Iterator[None]:
    """Print how far an application's replicas are, once per `every_s` seconds, until the block ends.

    Args:
        applications: returns those of serve.status(), by name.
        app: the application's name.
    """
    ends, started = threading.Event(), time.monotonic()

    def show() -> None:
        while not ends.wait(every_s):
            told = line(applications().get(app))
            if told and not ends.is_set():
                print(f"after {time.monotonic() - started:.0f} s: {told}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join(every_s)


def line(overview: Any) -> str:
    """Return the states of each deployment's replicas, and Ray Serve's message; empty if nothing is known."""
    deployments = overview.deployments if overview is not None else {}
    return "; ".join(_deployment(name, deployments[name]) for name in sorted(deployments))


def _deployment(name: str, found: Any) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in sorted(found.replica_states.items()))
    message = " ".join(found.message.split())
    return f"{name}: {counts or 'no replica yet'}{f' ({message[:300]})' if message else ''}"
