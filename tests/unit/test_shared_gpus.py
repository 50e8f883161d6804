"""When scripts/serve shares its GPUs by NVIDIA's MPS."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import shared_gpus
from server.errors import ServerError

from handlers.mps import PIPES

ROOT = Path(__file__).parents[2]


def archives(*workers: int) -> Any:
    return [SimpleNamespace(config={"minWorkers": count}) for count in workers]


@pytest.fixture(autouse=True)
def with_mps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MPS is installed, and no daemon runs."""
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.delenv(PIPES, raising=False)
    monkeypatch.setattr("handlers.mps.DEFAULT_PIPES", tmp_path / "none")


@pytest.mark.parametrize(
    ("choice", "workers", "gpus", "on"),
    [
        ("auto", (8,), 1, True),
        ("auto", (1, 8), 1, True),  # one busy model is enough
        ("auto", (4,), 1, None),
        ("auto", (8,), 2, None),  # four per GPU
        ("auto", (16,), 2, True),
        ("auto", (), 1, None),  # the demo
        ("auto", (8,), 0, None),
        ("on", (1,), 1, True),
        ("off", (8,), 1, False),
        ("off", (8,), 0, None),
    ],
)
def test_many_workers_share_their_gpu(choice: str, workers: tuple[int, ...], gpus: int, on: bool | None) -> None:
    assert shared_gpus.wanted(choice, archives(*workers), gpus) is on


def test_auto_takes_a_daemon_that_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "control").touch()
    monkeypatch.setattr("handlers.mps.DEFAULT_PIPES", tmp_path)
    assert shared_gpus.wanted("auto", archives(8), 1) is None
    monkeypatch.setattr("handlers.mps.DEFAULT_PIPES", tmp_path / "none")
    monkeypatch.setenv(PIPES, str(tmp_path))
    assert shared_gpus.wanted("auto", archives(8), 1) is None


def test_mps_is_looked_for_without_pytorch() -> None:
    program = "import sys, handlers.mps; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_auto_goes_on_without_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    assert shared_gpus.wanted("auto", archives(8), 1) is None


def test_what_was_asked_for_and_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerError, match="--mps on: there is no NVIDIA GPU here"):
        shared_gpus.wanted("on", archives(8), 0)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(ServerError, match="no nvidia-cuda-mps-control on the PATH"):
        shared_gpus.wanted("on", archives(8), 1)
