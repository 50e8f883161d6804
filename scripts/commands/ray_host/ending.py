"""The end of a Ray of this machine: the fronts take no new requests, and answer those on their way. Needs Ray."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import logging
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from ray_host import leftovers

LOOK_S = 0.05
ASK_S = 5.0  # for a front to say how many requests it has
CLEAR_S = 2.0  # for the 503 of those that are given up
IDLE_S = 0.5  # for HAProxy to close connections that nobody uses
MOST_BYTES = 1 << 20  # of HAProxy's figures


def drain(app: str, limit_s: float) -> None:
    """Let the fronts of an application refuse new requests with a 503, and wait until they have no others.

    Requests that take longer get a 503, too. Returns at once if the application does not serve. Never raises for
    what Ray does.

    Args:
        limit_s: seconds that requests on their way get.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # what its client does is of no interest any more
    with contextlib.suppress(Exception):  # Ray is gone or half started: nothing is left to be answered
        asyncio.run(_drain(app, limit_s))


def end_haproxy(folder: str, limit_s: float) -> None:
    """Let HAProxy send the answers that it has, take no new connections, and end.

    Args:
        folder: the Ray's private folder.
        limit_s: seconds that clients get to read their answers.
    """
    deadline = time.monotonic() + limit_s
    while _sessions(Path(folder)) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    running = [process for process in leftovers.processes(folder) if _is_haproxy(process, folder)]
    for process in running:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGUSR1)
    psutil.wait_procs(running, timeout=IDLE_S)


async def _drain(app: str, limit_s: float) -> None:
    from ray import serve

    handle = serve.get_app_handle(app)
    if await _wait(handle, limit_s):
        return
    print(f"some requests take longer than {limit_s:g} s; they get a 503", file=sys.stderr, flush=True)
    await handle.broadcast("clear").results_async(timeout_s=ASK_S, return_exceptions=True)
    await _wait(handle, CLEAR_S)


async def _wait(handle: Any, limit_s: float) -> bool:
    """Whether the fronts have no requests within the limit."""
    deadline = time.monotonic() + limit_s
    while await _on_their_way(handle):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(LOOK_S)
    return True


async def _on_their_way(handle: Any) -> int:
    """How many requests the fronts have; they take no new ones. A front that is gone has none."""
    try:
        told = await handle.broadcast("close").results_async(timeout_s=ASK_S, return_exceptions=True)
    except TimeoutError:  # a front is busy
        return 1
    return sum(count for count in told if isinstance(count, int))


def _sessions(folder: Path) -> int:
    """How many requests HAProxy has; 0 if it does not say."""
    count = 0
    for path in folder.glob("*/admin.sock"):
        with contextlib.suppress(OSError, ValueError, LookupError):
            rows = csv.DictReader(_figures(path).splitlines())
            count += sum(int(row["scur"]) for row in rows if row["svname"] == "BACKEND")
    return count


def _figures(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        connection.connect(str(path))
        connection.sendall(b"show stat\n")
        with connection.makefile("rb") as stream:
            return stream.read(MOST_BYTES).decode().removeprefix("# ")


def _is_haproxy(process: psutil.Process, folder: str) -> bool:
    """Whether it reads a configuration in the folder."""
    with contextlib.suppress(psutil.Error):
        return any(word.startswith(f"{folder}/") for word in process.cmdline())
    return False
