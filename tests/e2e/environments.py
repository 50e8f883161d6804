"""Make the environments of other hosts and of clients before tests need them: python -m tests.e2e.environments

scripts/test runs this in the background while it checks types and docs. If one cannot be made here, the tests try
again, and say why not.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.e2e import client_venv, host_process, ray_server, s3_server

# In the order in which the tests need them.
MAKERS: Mapping[str, Callable[[], Path]] = {
    "clients": client_venv.python,
    "kserve": partial(host_process.environment, "kserve"),
    "ray": ray_server.python,
    "s3": s3_server.python,
    "triton": partial(host_process.environment, "triton"),
}


def main() -> None:
    """Make all of them, one after another."""
    for name, make in MAKERS.items():
        try:
            make()
        except (subprocess.CalledProcessError, OSError, pytest.skip.Exception) as error:
            print(f"{name}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
