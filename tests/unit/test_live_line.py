"""What is said while engines are measured: one line at a terminal, a line per item in a log."""

from __future__ import annotations

import io
import logging
import time

import pytest

from archive import trial_run
from archive.progress import LiveLine, Progress
from handlers.selection import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_per_item() -> None:
    stream = io.StringIO()
    live = LiveLine(stream)
    live.show("fp32, 1 of 2")
    live.show("fp16, 2 of 2")
    live.close()
    assert stream.getvalue() == "        fp32, 1 of 2\n        fp16, 2 of 2\n"


def test_a_terminal_gets_one_line_with_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archive.progress.EVERY_S", 0.01)
    stream = Terminal()
    live = LiveLine(stream)
    live.show("fp32, 1 of 2")
    end = time.monotonic() + 10
    while "fp32, 1 of 2, 0 s" not in stream.getvalue() and time.monotonic() < end:
        time.sleep(0.01)
    live.show("fp16, 2 of 2")
    while "fp16, 2 of 2, 0 s" not in stream.getvalue() and time.monotonic() < end:
        time.sleep(0.01)
    live.close()
    written = stream.getvalue()
    assert "\n" not in written
    assert written.index("fp32, 1 of 2, 0 s") < written.index("fp16, 2 of 2, 0 s")
    assert written.endswith("\r\033[K")
    time.sleep(0.05)
    assert stream.getvalue() == written  # nothing is written after the end


def test_a_step_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Progress(1)
    with steps.step("loading"):
        steps.now("fp32, 1 of 1")
    said = capsys.readouterr()
    assert said.err == "        fp32, 1 of 1\n"
    assert said.out == "  [1/1] loading ...\n        0.0 s\n"


def test_what_is_measured_is_passed_on() -> None:
    lines: list[str] = []
    logger = logging.getLogger(trial_run.MEASURING_LOGGER)
    before = logger.handlers, logger.propagate, logger.level
    with trial_run.passing_on(trial_run.MEASURING_LOGGER, lines.append):
        progress.tell("measuring engine fused bf16", 2, 4)
    assert (logger.handlers, logger.propagate, logger.level) == before
    progress.tell("measuring engine fused bf16", 3, 4)
    assert lines == ["measuring engine fused bf16, 2 of 4"]
