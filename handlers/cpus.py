"""How many CPUs this process may use, by its affinity and by the quota of its control groups.

A container's CPU limit is such a quota. Its processes still see all of the host's cores, by os.cpu_count,
os.process_cpu_count and PyTorch as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable(root: Path = Path("/")) -> int:
    """CPUs that this process may keep busy: whole ones, and at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [limit for folder in _control_groups(root) if (limit := _limit(folder)) is not None]
    return max(1, int(min([cores, *limits])))


def share(workers: int) -> int:
    """CPUs of one of a model's workers, at least one."""
    return max(1, usable() // max(1, workers))


def _control_groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that may limit this process's CPUs: its own and all above it.

    Of both versions of the interface, see cgroups(7); for the columns of mountinfo see proc(5).
    """
    groups = [line.split(":", 2) for line in _lines(root / "proc/self/cgroup") if line.count(":") >= 2]
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, filesystem = line.partition(" - ")
        kind, options = filesystem.split(" ")[0], filesystem.split(" ")[-1]
        for _, controllers, path in groups:
            second = kind == "cgroup2" and not controllers
            first = kind == "cgroup" and "cpu" in options.split(",") and "cpu" in controllers.split(",")
            if first or second:
                top, point = mount.split(" ")[3:5]
                yield from _upwards(root / point.lstrip("/"), _below(top, path))


def _below(top: str, path: str) -> Path:
    """A group's path below a mount of the group `top`; nothing if it lies elsewhere, as a container may see it."""
    top = top.rstrip("/") + "/"
    return Path(path[len(top) :]) if path.startswith(top) and ".." not in path.split("/") else Path()


def _upwards(point: Path, below: Path) -> Iterator[Path]:
    return (point / folder for folder in (below, *below.parents))


def _limit(folder: Path) -> float | None:
    """CPUs that one control group allows; None without a limit."""
    of_second = [word for line in _lines(folder / "cpu.max") for word in line.split()]
    of_first = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
    try:
        quota, period = map(int, of_second or of_first)
    except ValueError:  # "max", or no such files
        return None
    return quota / period if quota > 0 and period > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
