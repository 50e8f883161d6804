"""Whether a second set of workers fits into memory beside the first."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def shortage(pids: Iterable[int], workers: int, more_bytes: int = 0) -> str | None:
    """Why `workers` more workers like those do not fit, in one line; None if they do, or if it cannot be told.

    Args:
        pids: of the model's workers that run now.
        workers: further ones that are to run at the same time.
        more_bytes: by which the new archive is larger than the old one.
    """
    running = list(pids)
    each = max((_resident(pid) for pid in running), default=0) + max(0, more_bytes)
    if each * workers > (free := _free_bytes()):
        return _line("memory", workers, each / 2**20, free / 2**20)
    gpu = _gpu_mib()
    used = [mib for pid, mib in gpu.items() if pid in running]
    free_mib = _free_gpu_mib()
    if used and free_mib and max(used) * workers > sum(free_mib):
        return _line("GPU memory", workers, max(used), sum(free_mib))
    return None


def _line(what: str, workers: int, each_mib: float, free_mib: float) -> str:
    need = f"{workers} x {each_mib:.0f} MiB of {what}"
    return f"both versions at once need {need} more, and {free_mib:.0f} MiB are free"


def _resident(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        memory = psutil.Process(pid).memory_full_info()
        return int(memory.uss)
    return 0


def _free_bytes() -> int:
    """What the machine has free, or the container's limit leaves, whichever is less."""
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        cache = _inactive_file((CGROUP / "memory.stat").read_text())
        free = min(free, limit - used + cache)
    return free


def _inactive_file(stat: str) -> int:
    """Bytes of files in memory that the kernel drops when it needs room."""
    found = [line.split()[1] for line in stat.splitlines() if line.startswith("inactive_file ")]
    return int(found[0]) if found else 0


def _gpu_mib() -> dict[int, float]:
    """GPU memory by process id; empty without a GPU, or where the driver does not tell."""
    lines = _smi("--query-compute-apps=pid,used_memory")
    found = {}
    for line in lines:
        with contextlib.suppress(ValueError):
            pid, mib = line.split(",")
            found[int(pid)] = float(mib)
    return found


def gpu_used_mib() -> list[float]:
    """MiB in use on each GPU; empty without one."""
    return _numbers("--query-gpu=memory.used")


def _free_gpu_mib() -> list[float]:
    return _numbers("--query-gpu=memory.free")


def _numbers(query: str) -> list[float]:
    found = []
    for line in _smi(query):
        with contextlib.suppress(ValueError):
            found.append(float(line))
    return found


def _smi(query: str) -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        command = [program, query, "--format=csv,noheader,nounits"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
