"""Fewer workers without a lost request.

TorchServe ends a worker at once when it scales down; the requests that the worker has get a 500. It always ends the
one that is last in its list. So that worker is parked first (handlers/protocol/parking.py): it gets no more requests,
and has none when it ends. Workers go one after the other.
"""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from server.client import Client, Report, refusal, silent
from server.errors import ServerError
from server.logs import Logs

from updates import draining

HEADER, PARKED = "x-park-worker", "parked"  # as in handlers/protocol/parking.py
FRESH_S = 4.0  # a worker parks for 10 s; one that has parked for longer than this is parked anew
LOOK_S = 0.01


def scale(
    client: Client,
    model: str,
    workers: int,
    timeout_s: float = 600,
    report: Report = silent,
    version: str = "",
    now: bool = False,
) -> None:
    """Have exactly `workers` ready workers. With fewer than before no request fails, unless `now`.

    Args:
        client: of the server.
        model, version: to scale; without a version the default one.
        workers: how many. 0: the model's requests are refused from then on; those that came before are answered.
        timeout_s: seconds to wait at most.
        report: is given a line per change.
        now: end workers at once; the requests that they have fail.

    Raises ServerError with the reason, OSError if nobody answers.
    """
    deadline = time.monotonic() + timeout_s
    while not now and len(before := _workers(client, model, version)) > workers:
        if client.config.get("cpu_launcher_enable") == "true":
            raise ServerError("with cpu_launcher_enable TorchServe restarts all workers; --now accepts lost requests")
        _end_last(client, model, version, before, deadline)
        report(f"{model}: {len(before) - 1} workers, one was parked and ended")
    client.scale(model, workers, max(0.0, deadline - time.monotonic()), report, version, limit_s=timeout_s)


def _end_last(client: Client, model: str, version: str, workers: list[dict[str, Any]], deadline: float) -> None:
    """End the last worker of the list once it has no request."""
    while True:
        parked = _parked(client, model, version, workers[-1]["id"], len(workers) == 1, deadline)
        now = _workers(client, model, version)
        if [worker["id"] for worker in now] != [worker["id"] for worker in workers]:
            raise ServerError(f"somebody else scales {model} too")
        if time.monotonic() - parked < FRESH_S:
            break
    answer = client.manage("PUT", _path(model, version), _count(len(workers) - 1))
    if answer.status not in (200, 202):
        raise ServerError(f"scaling {model} was refused: {refusal(answer)}")


def _parked(client: Client, model: str, version: str, worker: str, is_last: bool, deadline: float) -> float:
    """Wait until the worker of that id has no requests, and gets none; returns when that was (time.monotonic()).

    The last one is not parked: who sent the requests that it keeps waiting would get no answer at all.
    """
    if is_last:
        draining.wait_until_idle(client, model, version, max(0.0, deadline - time.monotonic()))
        return time.monotonic()
    logs = Logs(client.folder)
    while time.monotonic() < deadline:
        found = [item for item in _workers(client, model, version) if item["id"] == worker]
        if not found or worker in logs.stopped(model):
            return time.monotonic()  # it has failed, so it has no requests
        if found[0]["status"] == "READY" and _park(client, model, version, int(found[0]["pid"]), deadline):
            return time.monotonic()
        time.sleep(LOOK_S * 10)
    raise ServerError(f"a worker of {model} could not be parked in time; --now ends it, and the requests that it has")


def _park(client: Client, model: str, version: str, pid: int, deadline: float) -> bool:
    """Ask until the worker parks. Returns False if its process has ended. Raises ServerError."""
    at_once = len(_workers(client, model, version))
    pool = ThreadPoolExecutor(at_once)
    asked = set[Future[dict[str, Any]]]()
    try:
        while time.monotonic() < deadline:
            if (name := _name(pid)) in (PARKED, ""):
                return name == PARKED
            _check({one for one in asked if one.done()})
            asked = {one for one in asked if not one.done()}
            while len(asked) < at_once:
                asked.add(pool.submit(client.customized, model, version, {HEADER: str(pid)}))
            wait(asked, LOOK_S, FIRST_COMPLETED)
        return False
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # the parked worker's answer comes late, or never


def _check(done: set[Future[dict[str, Any]]]) -> None:
    """Raises ServerError if the handler of an answer is one that cannot park."""
    for one in done:
        try:
            about = one.result()
        except (ServerError, OSError):  # its worker was killed, or the queue is full: asked again
            continue
        except (KeyError, ValueError, IndexError):
            about = {}
        if not isinstance(about, dict) or "worker" not in about:
            raise ServerError(
                "the handler of this archive cannot park a worker, so a request that the worker has would fail. "
                "Package the archive again, or accept that with --now"
            )


def _name(pid: int) -> str:
    """The name of a process; "" if there is none of that id. Raises ServerError if it cannot be seen."""
    if not Path("/proc/self/comm").exists():
        raise ServerError("there is no /proc, so it cannot be seen whether a worker is parked; --now does without")
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _workers(client: Client, model: str, version: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.describe(model, version)["workers"]
    return found


def _path(model: str, version: str) -> str:
    return f"/models/{model}{'/' + version if version else ''}"


def _count(workers: int) -> dict[str, object]:
    return {"min_worker": workers, "max_worker": workers}
