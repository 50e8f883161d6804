"""A call that hangs ends the process, with where its threads were and one last line; a slow one does not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from handlers.serving import hang_limit, watchdog

ROOT = Path(__file__).parents[2]
BEGIN = """
import ctypes, logging, sys, time
from handlers.serving.watchdog import Watchdog

logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
dog = Watchdog(1)

def hang_of_a_secret_holder(text):
    with dog.watching("running the network"):
        CALL

for _ in range(30):
    with dog.watching("running the network"):
        time.sleep(0.02)
time.sleep(IDLE)
hang_of_a_secret_holder("S3CRET")
"""
HOLDS_THE_LOCK = "ctypes.PyDLL(None).sleep(100)"


def run(call: str, idle: float = 0) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    code = BEGIN.replace("CALL", call).replace("IDLE", str(idle))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done, time.monotonic() - started


def test_a_call_that_hangs_ends_the_process() -> None:
    done, _ = run("time.sleep(100)")
    assert done.returncode == watchdog.EXIT_STATUS
    last = done.stdout.splitlines()[-1]
    assert last.startswith("running the network took more than 1 s (hangTimeout), this worker ends")
    assert "hang_of_a_secret_holder" in done.stdout
    assert "S3CRET" not in done.stdout + done.stderr


@pytest.mark.parametrize("idle", [0, 2])
def test_a_call_that_holds_pythons_lock_ends_the_process_too(idle: float) -> None:
    """No thread of Python runs then. After a pause the timer is set anew."""
    done, _ = run(HOLDS_THE_LOCK, idle)
    assert done.returncode not in (0, None)
    assert "Timeout" in done.stdout
    assert "hang_of_a_secret_holder" in done.stdout


@pytest.mark.parametrize("call", ["time.sleep(0.7)", "pass"])
def test_a_slow_call_goes_on(call: str) -> None:
    done, _ = run(call)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_what_is_not_watched_may_take_its_time() -> None:
    """Not even the timer runs then, although the call holds Python's lock: a model that loads, say."""
    done, took = run("pass\n    time.sleep(1)\n    " + HOLDS_THE_LOCK.replace("100", "5"))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert took > 5


@pytest.mark.parametrize(
    ("setting", "device", "config", "gate", "seconds"),
    [
        (-1, "cuda", {}, False, 60),
        (-1, "cuda", {"responseTimeout": 30}, False, 15),
        (-1, "cpu", {"responseTimeout": 30}, False, 0),
        (7, "cpu", {}, False, 7),
        (0, "cuda", {}, False, 0),
        (7, "cuda", {}, True, 0),
    ],
)
def test_the_limit(
    monkeypatch: pytest.MonkeyPatch, setting: int, device: str, config: dict[str, Any], gate: bool, seconds: float
) -> None:
    monkeypatch.setattr(hang_limit, "Watchdog", lambda seconds: SimpleNamespace(limit_s=seconds))
    context: Any = SimpleNamespace(model_yaml_config=config, system_properties={"parity_gate": gate})
    description: dict[str, Any] = {}
    assert hang_limit.load_watchdog(context, setting, torch.device(device), description).limit_s == seconds
    assert description["hangTimeout"]["seconds"] == seconds


def test_a_limit_behind_torchserves_own_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hang_limit, "Watchdog", lambda seconds: seconds)
    context: Any = SimpleNamespace(model_yaml_config=None, system_properties={})
    hang_limit.load_watchdog(context, 120, torch.device("cpu"), {})
    assert "TorchServe itself ends the worker after 120 s" in caplog.text
