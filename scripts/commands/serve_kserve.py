"""Start kserve_host.server in an environment with KServe: what scripts/serve-kserve does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import own_environment
from kserve_host.command_line import arguments
from server.paths import python_path

from handlers import cpus, gpu_memory

REQUIREMENTS = Path(__file__).parent / "kserve_host" / "requirements.txt"


def main() -> None:
    if own_environment.existing("kserve", REQUIREMENTS) is None:
        arguments(sys.argv[1:])
    try:
        python = own_environment.python("kserve", REQUIREMENTS)
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: KServe could not be installed (pip ended with {error.returncode}); pip's message is above")
    os.environ["PYTHONPATH"] = python_path(os.environ.get("PYTHONPATH"))
    cpus.wait_patiently(os.environ)
    gpu_memory.spare(os.environ)
    os.execv(python, [str(python), "-m", "kserve_host.server", *sys.argv[1:]])  # noqa: S606 - this process becomes the server


if __name__ == "__main__":
    main()
