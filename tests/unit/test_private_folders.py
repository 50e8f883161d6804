"""A killed process leaves no unpacked archive behind for longer than until the next one is unpacked."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from handlers.hosts import private_folders

HOLDS = """
import sys, time
from handlers.hosts.private_folders import private_folder
with private_folder() as folder:
    (folder / "weights").write_bytes(b"x")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of this process and of those that it starts."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def aged(folder: Path) -> None:
    os.utime(folder, (1, 1))


def test_only_the_folder_of_a_killed_process_is_removed(parent: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDS], stdout=pipe, text=True) as holder:
        assert holder.stdout
        held = Path(holder.stdout.readline().strip())
        aged(held)
        with private_folders.private_folder() as own:
            aged(own)
            private_folders.remove_abandoned(parent)
            assert sorted(parent.iterdir()) == sorted([held, own])
        holder.kill()
        holder.wait()
        assert list(parent.iterdir()) == [held]
        with private_folders.private_folder() as own:
            assert list(parent.iterdir()) == [own]
    assert list(parent.iterdir()) == []


def test_new_folders_links_and_other_names_stay(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (parent / f"{private_folders.NEW_PREFIX}x").mkdir()
    (parent / f"{private_folders.PREFIX}link").symlink_to(elsewhere)
    (parent / f"{private_folders.PREFIX}file").touch()
    (parent / "archive-other").mkdir()
    for name in (f"{private_folders.PREFIX}file", "archive-other"):
        aged(parent / name)
    os.utime(parent / f"{private_folders.PREFIX}link", (1, 1), follow_symlinks=False)
    private_folders.remove_abandoned(parent)
    assert len(list(parent.iterdir())) == 4
    assert elsewhere.exists()


def test_without_locks_the_folder_serves_and_nothing_is_removed(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(descriptor: int, kind: int) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    (parent / f"{private_folders.PREFIX}old").mkdir()
    aged(parent / f"{private_folders.PREFIX}old")
    with private_folders.private_folder() as own:
        assert own.is_dir()
    assert [path.name for path in parent.iterdir()] == [f"{private_folders.PREFIX}old"]
