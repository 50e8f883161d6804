"""NVIDIA's MPS while a program runs: a control daemon of its own.

Under MPS the kernels of several processes run side by side on a GPU. Source: docs.nvidia.com/deploy/mps.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from handlers.mps import PIPES
from server.errors import ServerError
from server.gpus import DEVICES

PROGRAM = "nvidia-cuda-mps-control"
LOGS = "CUDA_MPS_LOG_DIRECTORY"
TIMEOUT_S = 30.0


@contextlib.contextmanager
def chosen(on: bool | None) -> Iterator[Mapping[str, str]]:
    """Give the environment of processes that shall share their GPUs by MPS, or not.

    on: True starts a control daemon and ends it with the `with` block. False names a folder without a daemon, so that
    one that runs already is not used either. None leaves all as it is. Raises ServerError if MPS cannot be started.
    """
    if on is None:
        yield {}
        return
    folder = Path(tempfile.mkdtemp(prefix="mps-"))
    environment = {PIPES: str(folder / "pipes"), LOGS: str(folder / "logs")}
    try:
        with _daemon(environment) if on else contextlib.nullcontext():
            yield environment
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check() -> None:
    """Raises ValueError if there is no MPS here."""
    if shutil.which(PROGRAM) is None:
        raise ValueError(f"--mps on: there is no {PROGRAM} on the PATH; it comes with NVIDIA's driver")


@contextlib.contextmanager
def _daemon(environment: Mapping[str, str]) -> Iterator[None]:
    """Run a control daemon. It sees all GPUs: its clients choose theirs by CUDA_VISIBLE_DEVICES."""
    for folder in environment.values():
        Path(folder).mkdir()
    around = {**{key: value for key, value in os.environ.items() if key != DEVICES}, **environment}
    try:
        _call(["-d"], around)  # a session of its own: Ctrl-C must not end it before the servers
        yield
    finally:
        _end(around)


def _end(environment: Mapping[str, str]) -> None:
    """End the daemon and its servers: by its command, or by its process if that fails."""
    pid = _pid(environment)
    with contextlib.suppress(ServerError):
        _call([], environment, "quit\n")
    deadline = time.monotonic() + TIMEOUT_S
    while pid is not None and _lives(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.1)


def _call(arguments: list[str], environment: Mapping[str, str], text: str = "") -> None:
    """Run the program. Its output goes to a file: the daemon would keep a pipe open."""
    with tempfile.TemporaryFile("w+") as output:
        try:
            done = subprocess.run(
                [PROGRAM, *arguments],
                input=text,
                text=True,
                env=environment,
                stdout=output,
                stderr=output,
                timeout=TIMEOUT_S,
                check=False,
                start_new_session=True,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ServerError(f"{PROGRAM} failed: {error}") from None
        if done.returncode:
            output.seek(0)
            raise ServerError(f"{PROGRAM} failed with exit status {done.returncode}: {output.read()[-500:].strip()}")


def _pid(environment: Mapping[str, str]) -> int | None:
    """Of the daemon, which writes it beside its pipes."""
    with contextlib.suppress(OSError, ValueError):
        return int((Path(environment[PIPES]) / f"{PROGRAM}.pid").read_text(encoding="utf-8"))
    return None


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False
