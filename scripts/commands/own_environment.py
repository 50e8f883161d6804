"""A virtual environment for one host, over the packages of the interpreter that runs here.

KServe wants an older psutil than this tree, and Triton's client an older NumPy. So each host's packages lie in
build/NAME-DIGEST. What is not there (PyTorch, transformers) is imported from this interpreter's own site-packages.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import sysconfig
from pathlib import Path

from server.paths import ROOT


def python(name: str, requirements: Path) -> Path:
    """Return the environment's interpreter. Makes the environment if there is none, which takes some minutes.

    Args:
        name: begins the folder's name.
        requirements: what pip installs. The folder's name has the digest of it and of the Python version.

    Raises subprocess.CalledProcessError if pip fails, for example without a network.
    """
    beneath = Path(sysconfig.get_path("purelib"))
    key = requirements.read_bytes() + f"{sys.version_info[:2]} {beneath}".encode()
    folder = ROOT / "build" / f"{name}-{hashlib.sha256(key).hexdigest()[:12]}"
    if (folder / "complete").exists():  # also in a container whose file system is read-only
        return folder / "bin" / "python"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs would install into one folder
        if not (folder / "complete").exists():
            _make(folder, requirements, beneath)
    return folder / "bin" / "python"


def _make(folder: Path, requirements: Path, beneath: Path) -> None:
    print(f"installing {requirements.parent.name}'s packages into {folder.name}; some minutes", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    interpreter = str(folder / "bin" / "python")
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(requirements)], check=True, stdout=sys.stderr)
    asked = [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "beneath.pth").write_text(f"{beneath}\n", encoding="utf-8")  # comes last on sys.path
    (folder / "complete").touch()
