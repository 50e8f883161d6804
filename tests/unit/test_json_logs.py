"""Why a worker does not load is found in JSON logs as in plain ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from server import logs
from server.json_logs import plain
from server.logs import Logs

WORKER = [
    "Backend worker process died.",
    "Traceback (most recent call last):",
    '  File "handler.py", line 3, in initialize',
    '    raise ValueError("weights are broken")',
    "ValueError: weights are broken",
]


def line(logger: str, thread: str, message: str, exception: str = "") -> str:
    found = {"time": "2026-11-26T16:03:37.801Z", "level": "INFO", "logger": logger, "thread": thread}
    return json.dumps({**found, "message": message, "exception": exception})


def written(folder: Path) -> Logs:
    """A log whose lines were written after it was opened."""
    made = Logs(folder)
    (folder / "logs").mkdir()
    thread = "W-9000-b_1.0"
    made.workers.write_text("\n".join(line("MODEL_LOG", f"{thread}-stdout", text) for text in WORKER), "utf-8")
    server = [f"{thread} State change WORKER_STARTED -> WORKER_STOPPED", "Load model failed: b, error: Worker died."]
    made.server.write_text("\n".join(line("org.pytorch.serve.X", thread, text) for text in server), "utf-8")
    return made


def test_the_reason_is_found(tmp_path: Path) -> None:
    found = written(tmp_path)
    assert found.load_error("b") == found.last_error("b") == "ValueError: weights are broken"
    assert found.load_error("c") is None
    assert found.stopped("b") == {"9000"}


def test_a_worker_that_gives_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = written(tmp_path)
    found.workers.write_text("", encoding="utf-8")
    monkeypatch.setattr(logs, "GRACE_S", -1.0)
    assert "gave no reason (Worker died.);" in str(found.load_error("b"))


def test_what_is_no_json_stays() -> None:
    half = line("a", "b", "c")[:-5]
    assert plain(f"plain\n{half}\n{{}}\n[1]") == f"plain\n{half}\n{{}}\n[1]"
    assert plain(line("LOG", "main", "failed", "java.io.IOException\n\tat X")) == (
        "2026-11-26T16:03:37.801Z [INFO ] main LOG - failed\njava.io.IOException\n\tat X"
    )
