"""How far more GPUs brought more: compare a row with that of fewer GPUs, and name what was at its limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADROOM = 1.25  # a no-op that is less than so many times as fast proves nothing
FULL = 0.9  # of the cores, the generator's threads, or the GPUs' time
SAME = ("target", "kind", "load", "loop", "batch_size", "max_batch_delay_ms", "mps")
PER_GPU = ("workers", "clients")


def share_of_linear(
    row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], first: tuple[int, int] | None
) -> float | None:
    """items/s of a row, divided by what as many GPUs would give if each gave as much as the first row's.

    first: GPUs and servers of the row to compare with. A program of its own has one server whatever the layout. None
    for an open loop, and if there is no such row.
    """
    if first is None or row["loop"] != "closed" or not row.get("gpus"):
        return None
    gpus, servers = first
    alike = [other for other in (*rows, row) if other.get("gpus") == gpus and _alike(row, other)]
    base = next((other for other in alike if other["servers"] == servers), alike[0] if alike else None)
    if base is None or not base["items_per_s"]:
        return None
    return float(row["items_per_s"] / (base["items_per_s"] * row["gpus"] / gpus))


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows differ only in GPUs and servers. A no-op's workers do not matter."""
    per_gpu = PER_GPU[1:] if one["kind"] == "no-op" else PER_GPU
    return all(one[key] == other[key] for key in SAME) and all(
        one[key] * other["gpus"] == other[key] * one["gpus"] for key in per_gpu
    )


def limited_by(row: Mapping[str, Any], cores: int, generator_threads: int) -> str | None:
    """What was near its limit in a closed loop, "CPU, GPU"; "?" if nothing was: more clients may bring more.

    cores: of the machine. generator_threads: of the load generator, 0 if unknown.
    """
    if row["loop"] != "closed":
        return None
    busy = row["gpu_busy"]
    generator = generator_threads > 0 and (row["cores"]["generator"] or 0) >= FULL * generator_threads
    near = {
        "load generator": generator,
        "front end": not generator and (row.get("headroom") or HEADROOM) < HEADROOM,
        "CPU": sum(value or 0 for value in row["cores"].values()) >= FULL * cores,
        "GPU": bool(busy) and sum(busy) / len(busy) >= FULL,
    }
    return ", ".join(name for name, is_near in near.items() if is_near) or "?"
