"""The phases of a worker's start: exclusive, complete, and harmless outside of a load."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from handlers import phases


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets by clock[0]."""
    now = [100.0]
    monkeypatch.setattr("handlers.phases.time.monotonic", lambda: now[0])
    return now


def test_parts_are_exclusive_and_add_up_to_the_whole(clock: list[float]) -> None:
    phases.begin(is_worker=False)
    clock[0] += 1
    with phases.phase("engine"):
        clock[0] += 2
        with phases.phase("weights"):
            clock[0] += 4
        clock[0] += 8
    with phases.phase("weights"):
        clock[0] += 16
    found = phases.end()
    assert found == {"ready": 31.0, "engine": 10.0, "weights": 20.0, "other": 1.0}
    assert phases.line(found) == "ready after 31.0 s: engine 10.0, weights 20.0, other 1.0"


def test_a_phase_that_fails_is_counted_and_ended(clock: list[float]) -> None:
    def fail() -> None:
        with phases.phase("weights"):
            clock[0] += 2
            raise ValueError("no weights")

    phases.begin(is_worker=False)
    with pytest.raises(ValueError, match="no weights"):
        fail()
    clock[0] += 1
    assert phases.end() == {"ready": 3.0, "weights": 2.0, "other": 1.0}


def test_outside_of_a_load_nothing_is_measured() -> None:
    with phases.phase("weights"):
        pass
    assert phases.end() == {}


def test_loads_in_two_threads_do_not_mix(clock: list[float]) -> None:
    phases.begin(is_worker=False)
    other: list[dict[str, float]] = []

    def load() -> None:
        with phases.phase("not begun here"):
            clock[0] += 1
        other.append(phases.end())

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert other == [{}]
    assert phases.end() == {"ready": 1.0, "other": 1.0}


def test_a_worker_counts_from_the_start_of_its_process() -> None:
    code = (
        "import time; time.sleep(0.5); from handlers import phases; phases.begin(is_worker=True); print(phases.end())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True, timeout=60
    ).stdout
    found: dict[str, float] = eval(said, {})  # noqa: S307 - this test's own output
    assert 0.4 < found["imports"] < 60
    assert found["ready"] == pytest.approx(found["imports"] + found["other"], abs=0.02)


@pytest.mark.parametrize(
    ("stat", "uptime"),
    [
        ("", "500.0 1.0"),
        ("1 (a) b) S 1", "500.0 1.0"),
        ("1 (a b) S " + "0 " * 30, "none"),
        ("1 (a b) S " + "0 " * 30, "90000.0 1.0"),
    ],
)
def test_an_unknown_age_is_left_out(tmp_path: Path, stat: str, uptime: str) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "stat").write_text(stat)
    (tmp_path / "uptime").write_text(uptime)
    assert phases.age_s(tmp_path) == 0.0


def test_a_missing_proc_is_no_error(tmp_path: Path) -> None:
    assert phases.age_s(tmp_path) == 0.0
