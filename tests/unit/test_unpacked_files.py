"""A worker refuses a folder that is not what was packaged."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlers import unpacked_files
from handlers.unpacked_files import ChangedFilesError

CONTENT = {"model.safetensors": b"weights", "handlers/loading.py": b"code", "model-config.yaml": b"batchSize: 1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in {**CONTENT, "provenance.json": b"{}", "MAR-INF/MANIFEST.json": b"{}"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.fixture
def provenance() -> dict[str, Any]:
    return {"files": {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}}


def test_what_was_packaged_passes(folder: Path, provenance: dict[str, Any]) -> None:
    (folder / "handlers" / "__pycache__").mkdir()
    (folder / "handlers" / "__pycache__" / "loading.pyc").write_bytes(b"compiled")
    assert unpacked_files.check(folder, provenance) == []


def test_a_cache_below_the_folder_passes(folder: Path, provenance: dict[str, Any]) -> None:
    """A planCache with a relative path lies there, because workers start in the model's folder."""
    (folder / "plans" / "cpu").mkdir(parents=True)
    (folder / "plans" / "cpu-1.json").write_text("{}")
    (folder / "plans" / "cpu" / "lock").touch()
    assert unpacked_files.check(folder, provenance) == []


def test_a_folder_without_digests_passes(folder: Path) -> None:
    assert unpacked_files.check(folder, {}) == []


def test_edited_settings_pass_and_are_named(
    folder: Path, provenance: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "model-config.yaml").write_bytes(b"batchSize: 8")
    with caplog.at_level(logging.INFO):
        assert unpacked_files.check(folder, provenance) == ["model-config.yaml"]
    assert "model-config.yaml was edited" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"weight"), "changed: model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "changed: model.safetensors"),
        (lambda folder: (folder / "handlers/loading.py").unlink(), "missing: handlers/loading.py"),
        (lambda folder: (folder / "model-config.yaml").unlink(), "missing: model-config.yaml"),
        (lambda folder: (folder / "numpy.py").write_bytes(b""), "new: numpy.py"),
        (lambda folder: (folder / "model.bin").write_bytes(b""), "new: model.bin"),
        (lambda folder: (folder / "handlers" / "x.json").write_bytes(b""), "new: handlers/x.json"),
        (lambda folder: [(folder / "numpy").mkdir(), (folder / "numpy/a.so").touch()], "new: numpy/a.so"),
        (lambda folder: (folder / "link").symlink_to("/absent"), "new: link"),
        (
            lambda folder: [(folder / f"{n}.py").touch() for n in range(9)],
            "new: 0.py, 1.py, 2.py, 3.py, 4.py and 4 more",
        ),
    ],
)
def test_each_other_change_is_named(
    folder: Path, provenance: dict[str, Any], change: Callable[[Path], object], said: str
) -> None:
    change(folder)
    with pytest.raises(ChangedFilesError, match=r"scripts/package verify") as caught:
        unpacked_files.check(folder, provenance)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
