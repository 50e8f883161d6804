"""Time an archive's engine alone: what engine_alone.py runs, in a process of its own.

The batches are those that the archive's handler makes of the load: same files or texts, same preparation, same
micro-batches. They are on the device before the clock starts, and nothing is made of the outputs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from handlers import load_errors
from handlers.hosts.loading import load_archive
from handlers.hosts.messages import HttpRequest
from handlers.hosts.model import Model
from serving_bench.engine_alone import JOB, RESULT


def main(folder: Path) -> None:
    """Do the job of a folder, and write the result there; `reason` in it says why there is none."""
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    try:
        found = measured(job, [(folder / str(index)).read_bytes() for index in range(job["bodies"])])
    except Exception as error:
        found = {"reason": f"{type(error).__name__}: {load_errors.one_line(error)}"}
    (folder / RESULT).write_text(json.dumps(found), encoding="utf-8")


def measured(job: dict[str, Any], bodies: Sequence[bytes]) -> dict[str, Any]:
    """Return items/s at each batch size, the most of them, and how the engine runs."""
    with load_archive(job["archive"], edited_settings=True, allow_other_version=True) as model:
        points = []
        for count in job["requests"]:
            sent = [HttpRequest(headers=job["headers"], body=bodies[at % len(bodies)]) for at in range(count)]
            run, batches = recorded(model, sent)
            items = count * job["items"]
            rate = items_per_s(run, batches, items, job["seconds"])
            points.append({"batch": items, "items_per_s": float(f"{rate:.5g}")})
        described = model.describe()
    return {
        **max(points, key=lambda point: point["items_per_s"]),
        "points": points,
        "engine": described["engine"]["name"],
        "precision": described["precision"]["name"],
        "device": described["device"]["name"],
        "handlers": described["archive"]["handlers"],
    }


def recorded(model: Model, sent: Sequence[HttpRequest]) -> tuple[Callable[[Any], torch.Tensor], list[Any]]:
    """Return the engine's function, and what the handler gives it for these requests together.

    Raises ValueError if a request is not answered with 200.
    """
    handler: Any = model._handler
    loaded, seen = handler.model, list[Any]()

    def run(batch: Any) -> torch.Tensor:
        seen.append(batch)
        outputs: torch.Tensor = loaded.engine.run(batch)
        return outputs

    handler.model = dataclasses.replace(loaded, engine=dataclasses.replace(loaded.engine, run=run))
    try:
        statuses = [response.status for response in model.answer_batch(sent)]
    finally:
        handler.model = loaded
    if refused := [status for status in statuses if status != 200]:
        raise ValueError(f"the archive answered {refused[0]} to {len(refused)} of {len(sent)} requests")
    return loaded.engine.run, seen


def items_per_s(run: Callable[[Any], object], batches: Sequence[Any], items: int, seconds: float) -> float:
    """Return the rate of running all batches again and again, for about `seconds`. items: in all of them."""

    def timed(times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            for batch in batches:
                run(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    timed(1)
    once = timed(1)
    if once >= seconds:
        return items / once
    times = math.ceil(seconds / max(once, 1e-6))
    return items * times / timed(times)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
