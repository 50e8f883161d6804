"""Environments of their own for programs whose packages would change those of the tests, as clients and Ray."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Sequence
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
    wanted = REQUIREMENTS.read_text(encoding="utf-8") + (ROOT / "client" / "pyproject.toml").read_text(
        encoding="utf-8"
    )
    return made("clients", wanted, ["-r", str(REQUIREMENTS)])


def made(name: str, content: str, packages: Sequence[str], seen: Sequence[Path] = ()) -> Path:
    """Return the interpreter of an environment, made once per name and content.

    Args:
        content: what decides what is installed.
        packages: what pip installs.
        seen: folders whose packages are seen, too, behind those that are installed.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(f"{content}{version}{packages}{seen}".encode()).hexdigest()[:12]
    folder = ROOT / "build" / f"{name}-{digest}"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests would install into one folder
        if not (folder / "complete").exists():
            _make(folder, packages, seen)
    return folder / "bin" / "python"


def _make(folder: Path, packages: Sequence[str], seen: Sequence[Path]) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for own in folder.glob("lib/python*/site-packages"):
        (own / "seen.pth").write_text("".join(f"{path}\n" for path in seen), encoding="utf-8")
    subprocess.run([*pip, *packages], cwd=ROOT, check=True)
    (folder / "complete").touch()
