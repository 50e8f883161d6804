"""A store with S3's protocol (moto's server), in an environment of its own: s3fs and moto bring pins of their own."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import own_environment
import pytest
from server.http import request
from server.paths import ROOT
from server.ports import free_ports

from tests.e2e import host_process

REQUIREMENTS = ROOT / "tests" / "e2e" / "s3_requirements.txt"


def python() -> Path:
    """Return the interpreter with s3fs and moto. Skips the test if they cannot be had."""
    try:
        return own_environment.python("s3", REQUIREMENTS)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"s3fs and moto cannot be installed here: pip ended with {error.returncode}")


@contextlib.contextmanager
def s3_server(folder: Path, bucket: str) -> Iterator[str]:
    """Yield the address of a store with an empty bucket. folder: for the server's output."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [str(python()), "-m", "moto.server", "-p", str(port)]
    with host_process.running(command, f"{url}/moto-api/", folder / "s3.log"):
        assert request("PUT", f"{url}/{bucket}").status == 200
        yield url
