"""Triton over exported archives: the server in the wheel of nvidia-pytriton."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.ports import free_ports

from tests.e2e import host_process
from tests.hosts_table import MODELS, Asked, Reply


@dataclass(frozen=True)
class Triton:
    """A running server. url: its address."""

    url: str

    def ask(self, asked: Asked) -> Reply:
        """Return what a client gets who sends this request."""
        return host_process.ask(self.url, asked)


@contextlib.contextmanager
def triton(store: Path, models: Sequence[str] = MODELS) -> Iterator[Triton]:
    """Export archives of a folder and serve them. Skips the test without the wheel."""
    python = host_process.environment("triton")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        for name in models:
            export = [sys.executable, "-m", "triton_host.export", str(store / f"{name}.mar"), str(repository)]
            subprocess.run(export, check=True, env=host_process.variables())
        command = [str(python), "-m", "triton_host.wheel_server", str(repository), "--http-port", str(port)]
        with host_process.running(command, f"{url}/v2/health/ready", Path(folder) / "log"):
            yield Triton(url)
