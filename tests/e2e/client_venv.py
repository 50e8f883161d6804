"""The environment of the client programs in tests/clients: made once per content of its requirements.txt."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

from server.paths import ROOT

CLIENTS = ROOT / "tests" / "clients"
REQUIREMENTS = CLIENTS / "requirements.txt"


def programs() -> list[Path]:
    """Return the client programs; a file that begins with an underscore is shared by several."""
    return sorted(path for path in CLIENTS.glob("*.py") if not path.name.startswith("_"))


def python() -> Path:
    """Return the environment's interpreter. Makes the environment if there is none, which takes a minute or two.

    It lies in build/, under the digest of the requirements, of our own client's, and of the Python version.

    Raises subprocess.CalledProcessError if pip fails, for example without a network.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}".encode()
    own = (ROOT / "client" / "pyproject.toml").read_bytes()
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + own + version).hexdigest()[:12]
    folder = ROOT / "build" / f"clients-{digest}"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests would install into one folder
        if not (folder / "complete").exists():
            _make(folder)
    return folder / "bin" / "python"


def _make(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(REQUIREMENTS)], cwd=ROOT, check=True)
    (folder / "complete").touch()
