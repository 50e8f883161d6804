"""Programs that are no Python packages: found, or the test is skipped with the reason."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import pytest
from demo import SAMPLES
from server.client import Client
from server.config import read_properties
from server.http import request
from server.paths import ROOT
from server.ports import free_ports, why_taken
from server.process import Server

__all__ = ["ROOT", "SAMPLES", "Client", "Server", "free_ports", "read_properties", "request"]  # for the tests here
DEPLOYMENT = ROOT / "scripts" / "deployment"
DEBIAN = ROOT / ".venv" / "debian"


def program(name: str) -> str:
    """The path of nginx, prometheus, promtool or openssl. Skips the test where it is not installed."""
    folders = [os.environ.get("PATH", ""), "/usr/sbin", f"{DEBIAN}/usr/sbin", f"{DEBIAN}/usr/bin"]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        pytest.skip(f"needs {name}: on Debian and Ubuntu scripts/deployment/tools unpacks it")
    return found


def until(done: Callable[[], object], timeout_s: float = 30) -> None:
    """Wait until `done` returns something true. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {done}")
        time.sleep(0.1)


def free_block(length: int) -> int:
    """The first of so many consecutive ports that are free, below those that Linux lends to connections."""
    for port in random.sample(range(12_000, 32_000, length), 20):
        if not any(why_taken("127.0.0.1", port + more) for more in range(length)):
            return port
    raise RuntimeError("no ports")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes], patience_s: float = 15) -> Iterator[None]:
    """End a process after the block, whatever happens in it."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def certificate(folder: Path) -> Path:
    """A self-signed certificate of localhost: folder/tls.crt and folder/tls.key; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-keyout", "tls.key", "-out", "tls.crt", "-subj", "/CN=localhost", "-addext"]
    subprocess.run(
        [program("openssl"), *command, "subjectAltName=DNS:localhost"], cwd=folder, check=True, capture_output=True
    )
    return folder


@dataclass
class Front:
    """nginx in front of a TorchServe, as scripts/deployment/front.py runs it."""

    process: subprocess.Popen[bytes]
    folder: Path
    tls: Path
    port: int

    @property
    def log(self) -> str:
        return (self.folder / "front.log").read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def front(server: Server, folder: Path, *options: str) -> Iterator[Front]:
    """Run nginx with TLS in front of `server`, until the block ends."""
    nginx, tls, (port,) = program("nginx"), certificate(folder / "certificate"), free_ports(1)
    config = server.config
    command = [sys.executable, str(DEPLOYMENT / "front.py"), "--folder", str(folder / "nginx"), "--nginx", nginx]
    command += ["--torchserve", str(server.folder), "--tls", str(tls), "--port", str(port), "--drain-s", "0"]
    command += ["--rest", urlparse(config["inference_address"]).netloc]
    command += ["--grpc", f"{config['grpc_inference_address']}:{config['grpc_inference_port']}", *options]
    (folder / "nginx").mkdir()
    with (folder / "front.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    with ended(process):
        until(lambda: process.poll() is not None or listens(port))
        made = Front(process, folder, tls, port)
        assert process.poll() is None, made.log
        yield made
