"""Digests of files: each file is read once in a process."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from handlers import digests


def test_a_file_is_hashed_once_and_again_where_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = tmp_path / "model.onnx", Path.open
    path.write_bytes(b"network")
    reads: list[Path] = []

    def counted(self: Path, mode: str = "r", *given: Any, **named: Any) -> Any:
        reads.extend([self] if mode == "rb" else [])
        return opened(self, mode, *given, **named)

    monkeypatch.setattr(Path, "open", counted)
    assert digests.of_file(path) == digests.of_file(path) == hashlib.sha256(b"network").hexdigest()
    assert reads == [path]
    path.write_bytes(b"another network")
    assert digests.of_file(path) == hashlib.sha256(b"another network").hexdigest()
