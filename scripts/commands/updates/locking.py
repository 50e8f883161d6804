"""One change at a time: two commands that change the same server would undo each other's work."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from server.errors import ServerError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other commands from changing the server of this folder. Raises ServerError if one does so now.

    The lock ends with the process, however that ends. folder: where torchserve was started.
    """
    file = folder / "logs" / ".changes.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerError("another scripts/deploy or scripts/scale changes this server; wait for it") from None
        yield
