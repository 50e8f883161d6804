"""Faults are injected by files in a folder, if the environment names one; without it nothing stands in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from handlers import faults


def network(batch: torch.Tensor) -> torch.Tensor:
    return batch * 10


BATCH = torch.ones(3, 2)


def test_without_the_variable_the_network_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    assert faults.around(network) is network


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(faults.VARIABLE, str(tmp_path))
    return tmp_path


def test_it_is_told_loudly(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    faults.around(network)
    assert caplog.records[0].levelname == "CRITICAL"
    assert "FAULTS ARE INJECTED" in caplog.text


def test_without_a_file_nothing_happens(folder: Path) -> None:
    assert faults.around(network)(BATCH).equal(BATCH * 10)


def test_memory_is_short_until_the_file_is_gone(folder: Path) -> None:
    run = faults.around(network)
    (folder / "oom").write_text("2")
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            run(BATCH)
    run(BATCH[:2])
    (folder / "oom").unlink()
    run(BATCH)


def test_the_first_row_is_spoilt_once(folder: Path) -> None:
    run = faults.around(network)
    (folder / "nan").touch()
    spoilt = run(BATCH)
    assert spoilt.isnan().any(dim=1).tolist() == [True, False, False]
    assert run(BATCH).isfinite().all()
