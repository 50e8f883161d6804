"""Triton over exported archives: the server in the wheel of nvidia-pytriton."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.ports import free_ports

from tests.e2e import host_process


@contextlib.contextmanager
def triton(store: Path, models: Sequence[str]) -> Iterator[str]:
    """Export archives of a folder, serve them, and yield the server's address. Skips the test without the wheel."""
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
            yield url
