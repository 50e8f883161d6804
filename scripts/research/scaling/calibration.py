"""What a simulated host needs to know, taken from a run of scripts/bench_serving on a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from scaling.host import Costs, Setup, closed_loop

Row = Mapping[str, Any]
SECONDS = 1.5  # of simulated time per point


class Calibrated(NamedTuple):
    """Costs and setup of a host, and the rows that they were taken from."""

    costs: Costs
    setup: Setup
    rows: tuple[Row, ...]


class Compared(NamedTuple):
    """A measured point beside its simulation. `errors` are relative: of requests/s, p50 and p99."""

    row: Row
    simulated: Mapping[str, float]
    errors: tuple[float, float, float]
    was_calibration: bool


def calibrated(run: Mapping[str, Any]) -> Calibrated:
    """Return the costs by two rows: one worker, and most workers, both with most clients; and by the no-op handler.

    Costs of the CPU and the GPU are taken as proportional to the items of a batch: a run has one batch size. Raises
    ValueError if a row is missing.
    """
    alone, crowded = _row(run["rows"], min), _row(run["rows"], max)
    if alone["workers"] != 1 or alone["batch_size"] != crowded["batch_size"]:
        raise ValueError("the run needs rows with one worker and with many, at the same batch size")
    noop = max(row["requests_per_s"] for row in run["rows"] if row["kind"] == "no-op")
    cycle = alone["mean_batch"] / alone["requests_per_s"]
    gpu = _gpu_seconds_per_batch(alone)
    costs = Costs(
        frontend=1 / noop,
        cpu_batch=0.0,
        cpu_item=(cycle - gpu) / alone["mean_batch"],
        gpu_batch=0.0,
        gpu_item=gpu / alone["mean_batch"],
        worker_cores=alone["cores"]["workers"] * cycle / (cycle - gpu),
        frontend_cores=(alone["cores"]["java"] + alone["cores"]["generator"]) / alone["requests_per_s"],
        overlap=max(1.0, gpu / _gpu_seconds_per_batch(crowded)),
    )
    delay, queue = crowded["max_batch_delay_ms"] / 1e3, int(run["settings"]["config.properties"]["job_queue_size"])
    setup = Setup(crowded["workers"], crowded["batch_size"], delay, queue, 1, 0.0)
    return Calibrated(costs, _crowded_as(costs, setup, crowded), (alone, crowded))


def compared(run: Mapping[str, Any], host: Calibrated) -> list[Compared]:
    """Return each closed-loop row of the model beside its simulation."""
    return [_compare(row, host) for row in run["rows"] if row["kind"] != "no-op" and row["loop"] == "closed"]


def _row(rows: Sequence[Row], end: Callable[[Iterable[int]], int]) -> Row:
    models = [row for row in rows if row["kind"] != "no-op" and row["loop"] == "closed"]
    if not models:
        raise ValueError("the run has no closed-loop row of a model")
    workers = end(row["workers"] for row in models)
    return max((row for row in models if row["workers"] == workers), key=lambda row: int(row["clients"]))


def _gpu_seconds_per_batch(row: Row) -> float:
    return float(row["gpu_busy"][0] * row["mean_batch"] / row["requests_per_s"])


def _crowded_as(costs: Costs, setup: Setup, row: Row) -> Setup:
    """The setup with the crowding at which the simulation is as fast as the row; found by halving."""
    low, high = 0.0, 0.5
    for _ in range(12):
        middle = (low + high) / 2
        if (
            closed_loop(costs, replace(setup, crowding=middle), row["clients"], SECONDS)["requests_per_s"]
            > row["requests_per_s"]
        ):
            low = middle
        else:
            high = middle
    return replace(setup, crowding=(low + high) / 2)


def _compare(row: Row, host: Calibrated) -> Compared:
    simulated = closed_loop(host.costs, replace(host.setup, workers=row["workers"]), row["clients"], SECONDS)
    names = ("requests_per_s", "p50_ms", "p99_ms")
    first, second, third = (simulated[name] / row[name] - 1 for name in names)
    return Compared(row, simulated, (first, second, third), any(row is known for known in host.rows))
