"""Whether scripts/serve shares its GPUs by NVIDIA's MPS."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence

from server import mps
from server.errors import ServerError
from serving_bench import layouts
from serving_bench.archives import Archive
from serving_bench.environment import gpu_names

from handlers.mps import PIPES, daemon_runs

# So few workers were faster without MPS. ResNet-101 on an H200: 4 workers 8,636 images/s, under MPS 7,918; 8 workers
# 8,534 and 10,412 (docs/benchmarks/serving-resnet101-workers-h200.json).
MANY = 4


@contextlib.contextmanager
def environment(choice: str, archives: Sequence[Archive]) -> Iterator[Mapping[str, str]]:
    """Give what TorchServe's environment needs besides this process's own.

    Args:
        choice: "auto", "on" or "off", as --mps has it.
        archives: what is served; empty: the demo, which has one worker per model.

    Raises:
        ServerError: if MPS was asked for and cannot be had.
    """
    on = wanted(choice, archives, gpus())
    if on:
        print("starting NVIDIA's MPS, by which the workers share the GPU; it ends with TorchServe", flush=True)
    with mps.chosen(on) as extra:
        yield extra


def wanted(choice: str, archives: Sequence[Archive], count: int) -> bool | None:
    """Return whether to use MPS; None leaves it as the machine has it.

    Args:
        count: GPUs that TorchServe will use.

    Raises:
        ServerError: if MPS was asked for and cannot be had.
    """
    if choice == "off":
        return False if count else None
    why_not = _why_not(count)
    if choice == "on":
        if why_not:
            raise ServerError(f"--mps on: {why_not}")
        return True
    busy = any(int(archive.config.get("minWorkers", 1)) > MANY * count for archive in archives)
    return True if busy and not why_not and not _is_decided() else None


def gpus() -> int:
    """Return how many GPUs this process may use."""
    return layouts.count_visible(os.environ, len(gpu_names()))


def _why_not(count: int) -> str:
    if not count:
        return "there is no NVIDIA GPU here"
    if shutil.which(mps.PROGRAM) is None:
        return f"there is no {mps.PROGRAM} on the PATH; it comes with NVIDIA's driver"
    return ""


def _is_decided() -> bool:
    """Whether somebody's control daemon runs, or the environment says where to look for one: it stays as it is."""
    return PIPES in os.environ or daemon_runs()
