"""A virtual environment for programs whose packages would change those of this tree.

KServe wants an older psutil, Triton's client an older NumPy, and Ray and the clients of the tests bring pins of their
own. So the packages of each lie in build/NAME-DIGEST. What is not there (PyTorch, transformers) can be imported from
the site-packages of the interpreter that runs here.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from server.paths import ROOT


def python(name: str, requirements: Path) -> Path:
    """Return the interpreter of an environment for a host, over the packages of this one. See `made`.

    Args:
        name: begins the folder's name.
        requirements: what pip installs.
    """
    return made(name, requirements.read_text(encoding="utf-8"), ["-r", str(requirements)], over_this_one=True)


def existing(name: str, requirements: Path) -> Path | None:
    """Return what `python` returns if that environment was made before, else None."""
    packages = ["-r", str(requirements)]
    folder, _ = _folder(name, requirements.read_text(encoding="utf-8"), packages, over_this_one=True)
    return folder / "bin" / "python" if (folder / "complete").exists() else None


def made(name: str, content: str, packages: Sequence[str], *, over_this_one: bool) -> Path:
    """Return the environment's interpreter. Makes the environment if there is none, which takes some minutes.

    Args:
        name: begins the folder's name.
        content: what decides what is installed. The folder's name has the digest of it and of the Python version.
        packages: what pip is told to install; paths in requirement files are relative to the project's root.
        over_this_one: whether the packages of this interpreter are seen, behind those that are installed.

    Raises subprocess.CalledProcessError if pip fails, for example without a network.
    """
    folder, beneath = _folder(name, content, packages, over_this_one=over_this_one)
    if (folder / "complete").exists():  # also in a container whose file system is read-only
        return folder / "bin" / "python"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs would install into one folder
        if not (folder / "complete").exists():
            _make(folder, packages, beneath)
    return folder / "bin" / "python"


def _folder(name: str, content: str, packages: Sequence[str], *, over_this_one: bool) -> tuple[Path, str]:
    """The environment's folder, and the site-packages beneath it ("" for none)."""
    beneath = sysconfig.get_path("purelib") if over_this_one else ""
    key = f"{content}{sys.version_info[:2]}{list(packages)}{beneath}".encode()
    return ROOT / "build" / f"{name}-{hashlib.sha256(key).hexdigest()[:12]}", beneath


def _make(folder: Path, packages: Sequence[str], beneath: str) -> None:
    print(f"installing packages into {folder.name}; some minutes", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    interpreter = str(folder / "bin" / "python")
    # -I: pip would leave out what it sees on PYTHONPATH.
    pip = [interpreter, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *packages], cwd=ROOT, check=True, stdout=sys.stderr)
    if beneath:
        asked = [interpreter, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        own = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
        (own / "beneath.pth").write_text(f"{beneath}\n", encoding="utf-8")  # comes last on sys.path
    (folder / "complete").touch()
