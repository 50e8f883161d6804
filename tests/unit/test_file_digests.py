"""Digests of files: each file is read once in a process."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlers import digests


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files in the order in which they are opened for reading."""
    found: list[Path] = []
    _before_opening(monkeypatch, found.append)
    return found


def _before_opening(monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], None]) -> None:
    opened = Path.open

    def noticed(self: Path, mode: str = "r", *given: Any, **named: Any) -> Any:
        if mode == "rb":
            act(self)
        return opened(self, mode, *given, **named)

    monkeypatch.setattr(Path, "open", noticed)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_hashed_once_and_again_where_it_changed(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"network")
    assert digests.of_file(path) == digests.of_file(path) == sha256(b"network")
    assert reads == [path]
    path.write_bytes(b"another network")
    assert digests.of_file(path) == sha256(b"another network")


def test_a_file_is_hashed_once_under_two_names(tmp_path: Path, reads: list[Path]) -> None:
    """TorchServe unpacks into a folder that its model folder links to."""
    path, link = tmp_path / "model.onnx", tmp_path / "link"
    path.write_bytes(b"weights")
    link.symlink_to(path)
    assert digests.of_file(link) == digests.of_file(path) == sha256(b"weights")
    assert len(reads) == 1


def test_a_file_that_a_thread_reads_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, started, go_on = tmp_path / "model.safetensors", threading.Event(), threading.Event()
    path.write_bytes(b"many weights")
    readers: list[str] = []

    def slow(_: Path) -> None:
        readers.append(threading.current_thread().name)
        started.set()
        assert go_on.wait(10)

    _before_opening(monkeypatch, slow)
    digests.start(path)
    assert started.wait(10)
    digests.start(path)
    threading.Timer(0.05, go_on.set).start()
    assert digests.of_file(path) == sha256(b"many weights")
    assert readers == ["digest"]


def test_starting_on_a_missing_file_is_harmless(tmp_path: Path) -> None:
    digests.start(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        digests.of_file(tmp_path / "missing")


def test_without_a_thread_the_caller_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights without a thread")

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    digests.start(path)
    assert digests.of_file(path) == sha256(b"weights without a thread")


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights again")
    with monkeypatch.context() as patched:
        _before_opening(patched, _fail)
        with pytest.raises(OSError, match="no disk"):
            digests.of_file(path)
    assert digests.of_file(path) == sha256(b"weights again")


def _fail(_: Path) -> None:
    raise OSError("no disk")


def test_the_files_of_a_removed_folder_are_forgotten(tmp_path: Path, reads: list[Path]) -> None:
    """A process that loads archive after archive unpacks each into a new folder."""
    kept, gone = tmp_path / "kept", tmp_path / "gone"
    for folder in (kept, gone):
        (folder / "code").mkdir(parents=True)
        (folder / "code" / "a.py").write_bytes(folder.name.encode())
        digests.of_file(folder / "code" / "a.py")
    digests.forget(gone)
    assert not [key for key in digests._found if gone in key[0].parents]
    digests.of_file(kept / "code" / "a.py")
    assert len(reads) == 2
