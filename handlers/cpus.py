"""How many CPUs this process may use, by its affinity and by the quotas of its control groups.

A container's CPU limit is such a quota. Its processes still see all of the host's cores: os.cpu_count,
os.process_cpu_count and PyTorch count those.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

# How OpenMP's threads wait between two operations; OpenMP reads it when its library loads. They would spin, and keep
# the CPUs from whoever else has work for them: other workers, Java, other programs.
WAIT_POLICY = "OMP_WAIT_POLICY"
PATIENT = "passive"


def wait_patiently(environment: MutableMapping[str, str]) -> None:
    """Have OpenMP's threads sleep while they wait, in processes that start with `environment`, unless it says how."""
    environment.setdefault(WAIT_POLICY, PATIENT)


def usable(root: Path = Path("/")) -> int:
    """Whole CPUs that this process may keep busy, at least one.

    Args:
        root: holds proc/ and the mounts of the control groups.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [limit for folder in _control_groups(root) if (limit := _limit(folder)) is not None]
    return max(1, int(min([cores, *limits])))


def share(workers: int) -> int:
    """CPUs for each of a model's workers, at least one.

    Args:
        workers: of the model, all on this machine.
    """
    return max(1, usable() // max(1, workers))


def _control_groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that may limit this process's CPUs: its own and all above it, in both versions.

    Source: cgroups(7) for both versions, proc(5) for the columns of mountinfo.
    """
    groups = [line.split(":", 2) for line in _lines(root / "proc/self/cgroup") if line.count(":") >= 2]
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, filesystem = line.partition(" - ")
        kind, options = filesystem.split(" ")[0], filesystem.split(" ")[-1]
        for _, controllers, path in groups:
            version_2 = kind == "cgroup2" and not controllers
            version_1 = kind == "cgroup" and "cpu" in options.split(",") and "cpu" in controllers.split(",")
            if version_1 or version_2:
                mounted_group, mount_point = mount.split(" ")[3:5]
                yield from _with_parents(root / mount_point.lstrip("/"), _relative(mounted_group, path))


def _relative(mounted_group: str, path: str) -> Path:
    """A group's path relative to the group that is mounted; empty if it lies outside, as a container may see it."""
    prefix = mounted_group.rstrip("/") + "/"
    return Path(path[len(prefix) :]) if path.startswith(prefix) and ".." not in path.split("/") else Path()


def _with_parents(mount_point: Path, group: Path) -> Iterator[Path]:
    """Folders of a group and of all groups above it, up to the mount point."""
    return (mount_point / folder for folder in (group, *group.parents))


def _limit(folder: Path) -> float | None:
    """CPUs that one control group allows; None without a limit."""
    version_2 = [word for line in _lines(folder / "cpu.max") for word in line.split()]
    version_1 = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
    try:
        quota_us, period_us = map(int, version_2 or version_1)
    except ValueError:  # "max", or no such files
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _lines(path: Path) -> list[str]:
    """The file's lines; none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
