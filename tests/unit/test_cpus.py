"""CPUs that a process may use: affinity and the quotas of both versions of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from handlers import cpus

SECOND = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
FIRST = "33 32 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
CPUSET = "34 32 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"
OTHER = "23 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw"
V1 = "/sys/fs/cgroup/cpu,cpuacct"
Files = dict[str, str]


def quota(folder: str, quota_us: int, period_us: int = 100_000) -> Files:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota_us}\n", f"{folder}/cpu.cfs_period_us": f"{period_us}\n"}


@pytest.mark.parametrize(
    ("group", "mounts", "files", "wanted"),
    [
        # a container with a namespace of its own sees its group as the root
        ("0::/", [SECOND], {"/sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        ("0::/", [SECOND], {"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ("0::/", [SECOND], {"/sys/fs/cgroup/cpu.max": "350000 100000\n"}, 3),
        ("0::/", [SECOND], {"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ("0::/", [SECOND], {"/sys/fs/cgroup/cpu.max": "10000 5000\n"}, 2),
        ("0::/", [SECOND], {"/sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 64),
        ("0::/", [SECOND], {}, 64),
        ("0::/", [SECOND], {"/sys/fs/cgroup/cpu.max": "nonsense\n"}, 64),
        # a group's limit holds for all below it
        (
            "0::/pods/one/main",
            [OTHER, SECOND],
            {
                "/sys/fs/cgroup/pods/one/main/cpu.max": "max 100000",
                "/sys/fs/cgroup/pods/one/cpu.max": "500000 100000",
                "/sys/fs/cgroup/pods/cpu.max": "800000 100000",
            },
            5,
        ),
        # the host's path, and a mount that shows only the container's group
        ("0::/docker/abc", [SECOND], {"/sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ("0::/../other", [SECOND], {"/sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ("4:cpu,cpuacct:/docker/abc", [FIRST.replace(" / ", " /docker/abc ")], quota(V1, 300_000), 3),
        ("4:cpu,cpuacct:/docker/abc", [FIRST.replace(" / ", " /docker/ab ")], quota(V1, 300_000), 3),
        # the first version, alone and beside the second
        ("4:cpu,cpuacct:/", [FIRST], quota(V1, 300_000), 3),
        ("4:cpuacct,cpu:/a/b", [FIRST], quota(f"{V1}/a", 700_000), 7),
        ("4:cpu,cpuacct:/", [FIRST], quota(V1, -1), 64),
        ("3:cpuset:/\n4:cpu,cpuacct:/a\n0::/a", [CPUSET, FIRST, SECOND], quota(f"{V1}/a", 600_000), 6),
        ("3:cpuset:/\n1:name=systemd:/", [CPUSET], {}, 64),
        ("torn", ["torn"], {}, 64),
    ],
)
def test_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, mounts: list[str], files: Files, wanted: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    files = {"/proc/self/cgroup": f"{group}\n", "/proc/self/mountinfo": "\n".join(mounts), **files}
    for name, content in files.items():
        path = tmp_path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    assert cpus.usable(tmp_path) == wanted


def test_affinity_limits_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no control groups in this folder, as on other systems than Linux."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert cpus.usable(tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpus.usable(tmp_path) == 1


def test_this_machine() -> None:
    assert 1 <= cpus.usable() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("workers", "wanted"), [(1, 8), (2, 4), (3, 2), (16, 1), (0, 8)])
def test_share(monkeypatch: pytest.MonkeyPatch, workers: int, wanted: int) -> None:
    monkeypatch.setattr(cpus, "usable", lambda: 8)
    assert cpus.share(workers) == wanted
