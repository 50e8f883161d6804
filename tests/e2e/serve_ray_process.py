"""scripts/serve-ray for tests, with Ray's environment: as a terminal starts it, and what it leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from ray_host import leftovers
from server.paths import python_path
from server.ports import free_ports

from tests.e2e.programs import until
from tests.e2e.ray_server import COMMANDS, python

START_S = 180
READY = "Serving until Ctrl-C"
KEPT = ("torchinductor_", ".ses")  # caches of PyTorch and of ONNX Runtime


class ServeRay:
    """A process in a session of its own, with a folder for temporary files."""

    def __init__(self, temporary: Path, log: Path, port: int, arguments: tuple[str, ...]) -> None:
        self.temporary, self.log, self.port, self.address = temporary, log, port, f"http://127.0.0.1:{port}"
        environment = {**os.environ, "PYTHONPATH": python_path(), "TMPDIR": str(temporary)}
        environment.pop("RAY_TMPDIR", None)
        command = [str(python()), str(COMMANDS / "serve_ray.py"), "--port", str(port), *arguments]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def wait_ready(self) -> None:
        until(lambda: READY in self.said() or self.process.poll() is not None, START_S)
        assert READY in self.said(), self.said()

    def press_ctrl_c(self) -> None:
        """Send SIGINT to all that a terminal would send it to."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, timeout_s: float = 60) -> float:
        """Wait for the end. Returns how many seconds that took."""
        started = time.monotonic()
        self.process.wait(timeout_s)
        return time.monotonic() - started

    def processes(self) -> list[psutil.Process]:
        """Return what it has started and what still runs, by the folder for temporary files."""
        return [process for process in psutil.process_iter() if self._is_its(process)]

    def files(self) -> list[str]:
        """Return what lies in its folder for temporary files, apart from empty folders and those caches."""
        found = [path.relative_to(self.temporary) for path in self.temporary.rglob("*") if not path.is_dir()]
        folders = [path.relative_to(self.temporary) for path in self.temporary.glob(f"{leftovers.PREFIX}*")]
        return sorted({str(path) for path in [*found, *folders] if not str(path).startswith(KEPT)})

    def _is_its(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return process.pid != self.process.pid and process.environ().get("TMPDIR") == str(self.temporary)
        return False


@contextlib.contextmanager
def serve_ray(
    folder: Path, *arguments: str, port: int | None = None, temporary: Path | None = None
) -> Iterator[ServeRay]:
    """Yield serve-ray, which has just been started.

    Args:
        folder: gets its output.
        arguments: its own.
        port: a free one if it is left out.
        temporary: the folder for temporary files; a new one if it is left out.
    """
    # Its name is short, because HAProxy's sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as made:
        log = Path(tempfile.mkstemp(dir=folder, suffix=".log")[1])
        server = ServeRay(temporary or Path(made), log, port or free_ports(1)[0], arguments)
        try:
            yield server
        finally:
            server.process.kill()
            for process in server.processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            server.process.wait()
            print(server.said())
