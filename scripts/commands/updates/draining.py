"""When a version of a model has nothing queued and nothing in work.

TorchServe does not tell what its workers have in work. But each version has one queue, first in, first out, and the
question for the handler's description goes through it too. A worker answers its batch before it takes anything else.
So once each worker has answered a question that was asked after the last request came, all requests are answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from server.client import Client
from server.errors import ServerError

# A request that looked up its version just before another became the default may reach the queue a little later.
SETTLE_S = 0.5
POLL_S = 0.05
NOT_ASKED = "no worker to serve"  # TorchServe's own answer: the queue is full, or nobody works
Pause = Callable[[float], None]  # sleeps; may raise, to end the wait


def wait_until_idle(client: Client, model: str, version: str, timeout_s: float, pause: Pause = time.sleep) -> None:
    """Wait until all requests that came to this version before are answered. Nothing is asked of an empty version.

    Args:
        client: of the server.
        model, version: to wait for. No request may come meanwhile, or the wait may not end.
        timeout_s: seconds to wait at most.
        pause: sleeps for that many seconds.

    Raises ServerError after `timeout_s`, OSError if nobody answers.
    """
    deadline = time.monotonic() + timeout_s
    pause(SETTLE_S)
    answered = set[int]()
    while not _is_idle(client.describe(model, version), answered):
        if time.monotonic() > deadline:
            raise ServerError(f"{model} {version} was not idle in time: {_left(client, model, version)}")
        if not _ready(client.describe(model, version)):  # its workers are starting: nobody could answer
            pause(POLL_S)
            continue
        pid = worker_that_answers(client, model, version, deadline)
        ready = _ready(client.describe(model, version))
        if pid is None and len(ready) == 1:  # it was this one
            pid = ready.pop()
        if pid is None:
            return _wait_for_timeout(client, model, version, deadline, pause)
        pause(POLL_S if pid in answered else 0)
        answered.add(pid)
    return None


def worker_that_answers(client: Client, model: str, version: str, deadline: float) -> int | None:
    """The process id of the worker that describes the model; None if its handler does not say.

    Raises ServerError, or OSError if there is no answer before `deadline` (time.monotonic()).
    """
    left = max(1.0, deadline - time.monotonic())
    try:
        about: Any = client.customized(model, version, timeout_s=left)
        pid = about["worker"]["pid"]
    except (KeyError, TypeError, ValueError, IndexError):  # not a handler of this project, or an earlier one
        return None
    except ServerError as error:
        if NOT_ASKED in str(error):
            raise
        return None  # a handler that fails at it has answered nevertheless
    return pid if isinstance(pid, int) else None


def _is_idle(described: dict[str, Any], answered: set[int]) -> bool:
    return not _waiting(described) and _ready(described) <= answered


def _ready(described: dict[str, Any]) -> set[int]:
    """Process ids of the workers that may have a batch. One that is loading has none."""
    return {int(worker["pid"]) for worker in described["workers"] if worker["status"] == "READY"}


def _waiting(described: dict[str, Any]) -> int:
    return int(described.get("jobQueueStatus", {}).get("pendingRequests", 0))


def _left(client: Client, model: str, version: str) -> str:
    described = client.describe(model, version)
    return f"{_waiting(described)} requests in its queue, {len(_ready(described))} workers"


def _wait_for_timeout(client: Client, model: str, version: str, deadline: float, pause: Pause) -> None:
    """Wait until the queue is empty, and then until TorchServe itself would have ended every batch."""
    while _waiting(described := client.describe(model, version)):
        if time.monotonic() > deadline:
            raise ServerError(f"{model} {version} was not idle in time: {_left(client, model, version)}")
        pause(POLL_S)
    until = time.monotonic() + float(described.get("responseTimeout", 120))
    while time.monotonic() < until:
        pause(POLL_S)
