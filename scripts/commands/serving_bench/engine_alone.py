"""The archives' engines alone, in the same run and on the same inputs: in a process of its own, after the servers.

What fails there is a reason in the report, and never the end of the run.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.paths import ROOT, python_path

from handlers import cpus
from serving_bench.archives import Archive
from serving_bench.engine_speed import EngineSpeed
from serving_bench.generator import Load
from serving_bench.layouts import Layout, environment_of
from serving_bench.measure import Bench, reason_of
from serving_bench.peers import archive_objection
from serving_bench.progress import beating

MODULE = "serving_bench.engine_process"
JOB, RESULT = "job.json", "result.json"
SECONDS = 2.0
TIMEOUT_S = 900  # TensorRT may build a plan at load
BATCH = 64  # items
MOST_ITEMS = 256  # of a larger batch, as it comes from requests with several items
NOT_YET = {"reason": "the run ended before it"}


def measure_all(
    bench: Bench,
    loads: Sequence[tuple[Archive, Load]],
    layout: Layout,
    gpus: int,
    found: dict[str, Any],
) -> None:
    """Measure the engine of each archive, and write the shares into the bench's rows.

    layout: whose first GPU is taken. gpus: that are visible to the servers. found: gets an entry per archive.
    """
    for archive, load in loads:
        bench.show(f"{archive.name}: its engine runs alone")
        with bench.progress.expecting(1), beating(bench.show, f"{archive.name}: its engine runs alone"):
            found[archive.name] = measure(archive, load, _environment(layout))
            prefix = "" if "reason" in found[archive.name] else bench.progress.finished()
        bench.show(f"{prefix}{line(archive.name, found[archive.name])}")
        if "reason" not in found[archive.name]:
            _write_shares(bench, archive.name, load.name, found[archive.name], gpus)
        bench.save(bench)


def line(archive: str, found: Mapping[str, Any]) -> str:
    """Return what came of it, in one line."""
    if reason := found.get("reason"):
        return f"engine of {archive} alone: not measured, {reason}"
    return (
        f"engine of {archive} alone ({found['engine']}, {found['precision']}, {found['device']}): "
        f"{found['items_per_s']:,.0f} {found['unit']}/s in batches of {found['batch']}"
    )


def measure(
    archive: Archive, load: Load, environment: Mapping[str, str], timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """Return items_per_s and the batch at which it is reached, engine, precision and device; or a `reason`.

    environment: variables of the process.
    """
    if reason := archive_objection(archive):
        return {"reason": reason}
    try:
        with tempfile.TemporaryDirectory(prefix="bench-engine-") as name:
            folder = Path(name)
            _write_job(folder, archive, load)
            command = [sys.executable, "-m", MODULE, str(folder)]
            done = subprocess.run(
                command, cwd=ROOT, env=dict(environment), capture_output=True, timeout=timeout_s, check=False
            )
            found = _result(folder, done)
    except Exception as error:
        return {"reason": reason_of(error)}
    return found if "reason" in found else {**found, "unit": load.unit, "load": load.name}


def _result(folder: Path, done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    file = folder / RESULT
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    return {"reason": f"its process ended with status {done.returncode}{said}"}


def _write_job(folder: Path, archive: Archive, load: Load) -> None:
    """Write what the process reads: the job, and the bodies as files 0, 1, ..."""
    sizes = batch_sizes(archive, load)
    needed = math.ceil(max(sizes) / load.items)
    bodies = list(load.bodies[:needed])
    for index, body in enumerate(bodies):
        (folder / str(index)).write_bytes(body)
    job = {
        "archive": str(archive.file),
        "headers": dict(load.headers),
        "bodies": len(bodies),
        "requests": [math.ceil(size / load.items) for size in sizes],
        "items": load.items,
        "seconds": SECONDS,
    }
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")


def batch_sizes(archive: Archive, load: Load) -> list[int]:
    """Return the items of the batches to measure: BATCH, and more if the served batches can be larger."""
    served = min(MOST_ITEMS, int(archive.batching["batchSize"]) * load.items)
    return [BATCH, served] if served > BATCH else [BATCH]


def _environment(layout: Layout) -> dict[str, str]:
    """This process's variables, with this tree first on PYTHONPATH, and the first of the layout's GPUs."""
    own = environment_of(layout.devices[:1]) if layout.devices else {}
    found = {**os.environ, **own, "PYTHONPATH": python_path(os.environ.get("PYTHONPATH"))}
    cpus.wait_patiently(found)  # as TorchServe's workers do
    return found


def _write_shares(bench: Bench, archive: str, load: str, found: Mapping[str, Any], gpus: int) -> None:
    speed = EngineSpeed(found["items_per_s"], gpus if found["device"].startswith("cuda") else 0)
    for row in bench.rows:
        if (row.get("archive"), row["load"]) == (archive, load):
            row["share_of_engine"] = speed.share(row)
