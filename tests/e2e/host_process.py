"""Start another host than TorchServe in a process of its own, wait until it is ready, and end it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import own_environment
import pytest
from server.http import request
from server.paths import ROOT

from tests.e2e.programs import ended
from tests.hosts_table import Asked, Reply

START_TIMEOUT_S = 120
END_TIMEOUT_S = 40


def environment(name: str) -> Path:
    """Return the interpreter with this host's packages; skips the test if they cannot be had."""
    requirements = ROOT / "scripts" / "commands" / f"{name}_host" / "requirements.txt"
    try:
        return own_environment.python(name, requirements)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{name}'s packages cannot be installed here: pip ended with {error.returncode}")


@contextlib.contextmanager
def running(command: Sequence[str], ready: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Yield the process once GET `ready` is answered with 200.

    Args:
        command: the program and its arguments.
        ready: a URL.
        log: gets what the process prints.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=variables(), stdout=output, stderr=subprocess.STDOUT)
    with ended(process, END_TIMEOUT_S):
        _wait(process, ready, log)
        yield process


def ask(address: str, asked: Asked) -> Reply:
    """Return what a client of a server gets who sends a request of the table."""
    plain = {} if any(name == "Content-Type" for name in asked.headers) else {"Content-Type": ""}
    return Reply.of(*request("POST", f"{address}{asked.target}", asked.body, {**plain, **asked.headers}))


def variables() -> dict[str, str]:
    """Return this process's environment variables, with this tree first on PYTHONPATH."""
    paths = [str(ROOT), str(ROOT / "scripts" / "commands"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _wait(process: subprocess.Popen[bytes], ready: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            if request("GET", ready).status == 200:
                return
        time.sleep(0.2)
    print(log.read_text(errors="replace")[-5000:], file=sys.stderr)
    raise AssertionError("the host did not start; its output is above")
