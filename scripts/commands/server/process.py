"""The process of a TorchServe: start it, wait for its models, stop it and all that it started."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from handlers import cpus
from server.client import Client, Report
from server.config import ADDRESSES, read_properties
from server.errors import ServerError
from server.java import find_java_home
from server.logs import Logs, read_from
from server.ports import check_free
from server.tokens import KEY_FILE

STOP_TIMEOUT_S = 20.0
POLL_S = 0.2
# A checkout on PYTHONPATH would be imported in place of what the archives hold.
NOT_PASSED_ON = ("PYTHONPATH", "TS_CONFIG_FILE")


@dataclass
class Server:
    """A TorchServe in a process group of its own.

    folder: where it runs; it gets key_file.json and logs/. models: NAME=ARCHIVE.mar of the model store, to register
    at the start; empty: none. environment: variables besides this process's own.
    """

    folder: Path
    config_file: Path
    model_store: Path
    models: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False)

    @property
    def config(self) -> dict[str, str]:
        """The content of config_file."""
        return read_properties(self.config_file)

    @property
    def client(self) -> Client:
        """What asks and manages this server."""
        return Client(self.folder, self.config)

    @property
    def log(self) -> Path:
        """All that the server and its workers write."""
        return self.folder / "logs" / "console.log"

    def check(self) -> str:
        """The Java to start with. Raises ServerError if there is none, or if a port is taken."""
        java_home = find_java_home()
        for key in ADDRESSES:
            check_free(self.config[key], self.config_file)
        return java_home

    def start(self) -> None:
        """Start TorchServe in the background.

        Raises ServerError for the reasons of `check`, or if another Server runs in this folder.
        """
        java_home = self.check()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        _lock(_lock_file(self.folder), self.held)  # two servers would take each other's tokens and log
        (self.folder / KEY_FILE).unlink(missing_ok=True)
        # TorchServe keeps its pid file, sockets and unpacked models there, so each server needs its own.
        self.temporary = tempfile.mkdtemp(prefix="torchserve-")
        self.log.write_bytes(b"")
        self.logs = Logs(self.folder)
        with self.log.open("ab") as log:  # appending, so that a log that is emptied meanwhile starts at its beginning
            self.process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                env=self._environment(java_home),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _command(self) -> list[str]:
        return [
            *(str(Path(sys.executable).parent / "torchserve"), "--start", "--foreground", "--ncs"),
            *("--ts-config", str(self.config_file), "--model-store", str(self.model_store)),
            *(("--models", *self.models) if self.models else ()),
        ]

    def _environment(self, java_home: str) -> dict[str, str]:
        return {
            cpus.WAIT_POLICY: cpus.PATIENT,
            **{key: value for key, value in os.environ.items() if key not in NOT_PASSED_ON},
            **self.environment,
            "TMPDIR": self.temporary,
            "TEMP": self.temporary,
            "LOG_LOCATION": str(self.log.parent),
            "METRICS_LOCATION": str(self.log.parent),
            "JAVA_HOME": java_home,
        }

    def wait(self, asks: Mapping[str, Callable[[Client], bool]], timeout_s: float, report: Report) -> None:
        """Wait until every model answers: /ping answers long before.

        asks: by model, what sends it a request and returns True once it answers.
        Raises ServerError if the server ends, if a model cannot be loaded, or after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        waiting = dict(asks)
        while waiting:
            self._check_start(waiting, deadline, timeout_s)
            for model in list(waiting):
                with contextlib.suppress(OSError, ServerError):
                    if waiting[model](self.client):
                        del waiting[model]
                        report(f"{model} answers")
            time.sleep(POLL_S)

    def _check_start(self, waiting: Mapping[str, object], deadline: float, timeout_s: float) -> None:
        if self.process is None or self.process.poll() is not None:
            raise ServerError(f"TorchServe ended while starting:\n{self.tail()}")
        for model in waiting:
            if error := self.logs.load_error(model):
                raise ServerError(f"{model} cannot be loaded: {error} (all of it: {self.log})")
        if time.monotonic() > deadline:
            raise ServerError(f"{', '.join(waiting)} did not answer within {round(timeout_s, 2):g} s:\n{self.tail()}")

    def stop(self) -> None:
        """Stop TorchServe and everything that it started. A second call does nothing."""
        if self.process is None:
            return
        _end_group(self.process)
        self.process = None
        (self.folder / KEY_FILE).unlink(missing_ok=True)
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.held.close()

    def tail(self, lines: int = 25) -> str:
        """The last lines of the server's output, and where the rest is."""
        return "\n".join([*read_from(self.log, 0).splitlines()[-lines:], f"(all of it: {self.log})"])


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the whole group, so that TorchServe can finish; later SIGKILL to what is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            process.poll()
            if not _group_lives(process.pid):
                return
            time.sleep(0.1)


def _group_lives(group: int) -> bool:
    """Whether any process of the group runs. One that has ended, but was not waited for, does not count."""
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


def check_folder_free(folder: Path) -> None:
    """Raises ServerError if a Server runs in `folder`."""
    lock = _lock_file(folder)
    if lock.is_file():
        with contextlib.ExitStack() as held:
            _lock(lock, held)


def _lock_file(folder: Path) -> Path:
    return folder / "logs" / ".lock"


def _lock(path: Path, held: contextlib.ExitStack) -> None:
    """Lock a file until `held` is closed or this process ends. Raises ServerError if another process has locked it.

    flock of the standard library does all of it: the lock ends with its process, and nothing waits for it.
    """
    file = held.enter_context(path.open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise ServerError(f"another server runs in {path.parent.parent}; stop it, or start this in a clone") from None
