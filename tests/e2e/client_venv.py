"""The client programs, and the environment with the clients that they use."""

from __future__ import annotations

from pathlib import Path

import own_environment
from server.paths import ROOT

CLIENTS = ROOT / "tests" / "clients"
REQUIREMENTS = CLIENTS / "requirements.txt"


def programs() -> list[Path]:
    """Return the client programs; a file that begins with an underscore is shared by several."""
    return sorted(path for path in CLIENTS.glob("*.py") if not path.name.startswith("_"))


def python() -> Path:
    """Return the environment's interpreter. Makes the environment if there is none, which takes a minute or two.

    It depends on the requirements and on those of our own client.

    Raises subprocess.CalledProcessError if pip fails, for example without a network.
    """
    files = (REQUIREMENTS, ROOT / "client" / "pyproject.toml")
    content = "".join(file.read_text(encoding="utf-8") for file in files)
    return own_environment.made("clients", content, ["-r", str(REQUIREMENTS)], over_this_one=False)
