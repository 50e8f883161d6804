"""A worker parks if the management port names it, and no client can make it park."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from handlers.protocol import parking
from handlers.protocol.adapters import management
from handlers.protocol.interface import Interface
from handlers.protocol.row import Row

MODEL = Interface(wanted="", accepts=lambda media_type: True, max_inputs=1, description={"kind": "image-classifier"})
PROGRAM = "import os; from handlers.protocol import parking; parking.park_if_named(str(os.getpid()), 60)"


def described(headers: dict[str, Any]) -> object:
    return management.ADAPTER.read(Row.of({}, {"describe": "True", **headers}), MODEL).combine([])


def test_the_description_names_the_worker() -> None:
    assert described({}) == {"kind": "image-classifier", "worker": {"pid": os.getpid()}}


@pytest.mark.parametrize("pid", ["", "1", "x", "{} ", "-{}"])
def test_another_worker_answers_at_once(pid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("parked"))
    assert described({parking.HEADER: pid.format(os.getpid())})


def test_the_named_worker_waits_and_then_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = list[float]()
    monkeypatch.setattr(time, "sleep", waited.append)
    assert described({"X-Park-Worker": str(os.getpid())})
    assert waited == [parking.SECONDS]


def test_the_process_has_that_name_while_it_is_parked() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[2]) as process:
        try:
            deadline = time.monotonic() + 30
            while Path(f"/proc/{process.pid}/comm").read_text().strip() != parking.PARKED:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.kill()


def test_the_name_is_given_back() -> None:
    before = parking.NAME.read_text()
    parking.park_if_named(str(os.getpid()), 0)
    assert parking.NAME.read_text() == before


@pytest.mark.parametrize(
    ("parameters", "headers"),
    [({"body": b""}, {"describe": "True"}), ({}, {"describe": "True", "content-type": "multipart/form-data"})],
)
def test_no_request_for_inference_is_taken_for_the_management_ports(
    parameters: dict[str, bytes], headers: dict[str, str]
) -> None:
    assert not management.ADAPTER.claims(Row.of(parameters, {**headers, parking.HEADER: str(os.getpid())}))
