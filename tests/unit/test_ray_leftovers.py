"""What a killed serve-ray leaves is ended and removed, and nothing else is; without Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from ray_host import keeper, leftovers, local
from server.paths import python_path

# As serve-ray: a folder, a keeper, a process that inherits the folder's name, an agent of Ray's, and a session.
OWNER = """
import os, subprocess, sys, time
from pathlib import Path
from ray_host import keeper, leftovers
folder = leftovers.made()
os.environ[leftovers.FOLDER] = folder
session = Path(f"{leftovers.temporary()}/ray/session_2026_{os.getpid()}")
(session / "logs").mkdir(parents=True)
(session / "sockets").mkdir()
sleeps = ["-c", "import time; time.sleep(600)"]
child = subprocess.Popen([sys.executable, *sleeps], start_new_session=True)
with (session / "logs" / "raylet.out").open("w") as log:
    without = {name: value for name, value in os.environ.items() if name != leftovers.FOLDER}
    agent = subprocess.Popen(["ray::Agent", *sleeps], executable=sys.executable, env=without, stdout=log)
kept = keeper.start(folder) if sys.argv[1:] else None
print(folder, session, child.pid, agent.pid, kept.pid if kept else 0, flush=True)
time.sleep(600)
"""


class Owner:
    """A process as OWNER has it."""

    def __init__(self, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": python_path()}
        command = [sys.executable, "-c", OWNER, *arguments]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        folder, session, *pids = self.process.stdout.readline().split()
        self.process.stdout.close()
        self.folder, self.session = Path(folder), Path(session)
        self.pids = [int(pid) for pid in pids if pid != "0"]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def runs(self) -> list[bool]:
        return [is_running(pid) for pid in self.pids]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Owner]]:
    """Starts owners whose folders lie in tmp_path."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as parent:
        monkeypatch.setenv("TMPDIR", parent)
        monkeypatch.setattr(tempfile, "tempdir", parent)
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setattr(leftovers, "SHORT", parent)

        def start(*arguments: str) -> Owner:
            owner = Owner(*arguments)
            stack.callback(end, owner)
            return owner

        yield start


def end(owner: Owner) -> None:
    owner.kill()
    for pid in owner.pids:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)


def until(done: Callable[[], object], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def test_the_next_start_ends_what_a_killed_one_left(
    owners: Callable[..., Owner], capsys: pytest.CaptureFixture[str]
) -> None:
    left, living = owners(), owners()
    left.kill()
    assert leftovers.abandoned() == [left.folder]
    local.clear_left()
    assert not left.folder.exists()
    assert left.runs() == [False, False]
    assert [path.name for path in left.session.iterdir()] == ["logs"]  # they may say why
    assert living.runs() == [True, True]
    assert living.folder.exists()
    assert (living.session / "sockets").exists()
    assert capsys.readouterr().err == "an earlier serve-ray was killed; ended 2 processes that it had left\n"
    local.clear_left()
    assert capsys.readouterr().err == ""


def test_the_keeper_ends_what_a_killed_one_left(owners: Callable[..., Owner]) -> None:
    owner = owners("with a keeper")
    assert owner.runs() == [True, True, True]
    owner.kill()
    until(lambda: owner.runs() == [False, False, False])
    assert not owner.folder.exists()


def test_a_clean_end_leaves_nothing(owners: Callable[..., Owner]) -> None:
    owner = owners()
    (owner.session.parent / "session_latest").symlink_to(owner.session)
    older = owner.session.with_name(f"session_2025_{owner.process.pid}")  # another process had the pid before
    older.mkdir()
    os.utime(older, (1, 1))
    assert leftovers.clear(owner.folder) == 2
    assert owner.runs() == [False, False]
    assert [path.name for path in owner.session.parent.iterdir()] == [older.name]
    assert not owner.folder.exists()


def test_logs_that_a_message_names_stay(owners: Callable[..., Owner]) -> None:
    owner = owners()
    leftovers.keep_logs({leftovers.FOLDER: str(owner.folder)})
    leftovers.clear(owner.folder)
    assert [path.name for path in owner.session.iterdir()] == ["logs"]


def test_a_reader_of_the_logs_lives(owners: Callable[..., Owner]) -> None:
    owner = owners()
    log = owner.session / "logs" / "raylet.out"
    with subprocess.Popen(["tail", "-f", str(log)], stdout=subprocess.DEVNULL) as reader:
        owner.kill()
        local.clear_left()
        assert reader.poll() is None
        reader.kill()


def test_folders_of_others_stay(owners: Callable[..., Owner], monkeypatch: pytest.MonkeyPatch) -> None:
    left = owners()
    left.kill()
    mine = Path(leftovers.made())
    other = Path(tempfile.mkdtemp(prefix=leftovers.PREFIX))  # without the file that is locked
    assert leftovers.abandoned() == [left.folder]
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert leftovers.abandoned() == []
    monkeypatch.undo()
    for folder in (mine, other):
        assert folder.exists()
        leftovers.clear(folder)


def test_a_long_name_is_made_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """HAProxy refuses a socket whose path is longer than 97 characters."""
    long = tmp_path / ("x" * 20)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = leftovers.made()
    try:
        assert len(f"{folder}/{'0' * 56}/metrics.sock") <= 97
        assert list(long.iterdir()) == []
    finally:
        leftovers.clear(folder)


def test_a_keeper_that_is_stopped_ends(tmp_path: Path) -> None:
    kept = keeper.start(str(tmp_path / "none"))
    keeper.stop(kept)
    assert kept.poll() == 0
