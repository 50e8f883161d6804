"""What one Ray of this machine leaves: processes, a private folder, Ray's session folder. All of it ends together.

A program that serves has a private folder, and holds a lock in it. The system releases the lock when the program
ends, however it ends. So a folder whose lock is free is what a killed program has left. Its processes are known by
the folder's name in their environment, which they inherit.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

import psutil

FOLDER = "SERVE_RAY_FOLDER"  # the variable that names the private folder, for all processes of a Ray
NODE = "SERVE_RAY_NODE"  # the variable that names the folder of a machine of a cluster, for all of its processes
STARTER = "starter"  # the file in such a folder: the pid of the `ray start` that it was made for
PREFIX = "ha-"
OWNER = "owner"  # the file in it that is locked: who has made it, and where its Ray writes
KEEP_LOGS = "keep-logs"
SHORT = "/tmp"  # noqa: S108 - where Ray's own choice is, too; a folder there is made by mkdtemp, and private
# HAProxy takes a socket's path of 97 characters at most. Ray adds a node's ID of 56, a name, and two "/".
LONGEST_FOLDER = 97 - len("/metrics.sock") - 57
CLOCK_S = 1.0  # a file system's clock may be behind
END_S = 5.0  # until processes that start others are given up

_locks: dict[str, int] = {}  # file descriptors; they stay open until `forget`


def made() -> str:
    """Make a private folder, and hold its lock until this process ends or calls `clear`. Raises OSError."""
    folder = private_folder()
    written = Path(folder) / f"{OWNER}.new"
    descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with contextlib.suppress(OSError):  # a file system without locks: nothing in it is ever taken for left
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    told = {"pid": os.getpid(), "started": time.time(), "sessions": f"{temporary()}/ray"}
    os.write(descriptor, json.dumps(told).encode())
    written.rename(written.with_name(OWNER))  # it is locked before anyone sees it
    _locks[folder] = descriptor
    return folder


def private_folder() -> str:
    """Make a folder that no other user reads, with a path that is short enough for HAProxy. Raises OSError."""
    folder = tempfile.mkdtemp(prefix=PREFIX)
    if len(folder) > LONGEST_FOLDER:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix=PREFIX, dir=SHORT)
    return folder


def node_folder() -> str:
    """Make a private folder for a machine of a cluster; `ray start` takes this process's place. Raises OSError."""
    folder = private_folder()
    (Path(folder) / STARTER).write_text(str(os.getpid()), encoding="ascii")
    return folder


def remove_node_folders() -> None:
    """Remove this user's folders of machines of a cluster that run no more: `ray stop` leaves them. Never raises."""
    used = {environment.get(NODE) for environment in _environments()}
    for folder in _private_folders():
        with contextlib.suppress(OSError, ValueError):  # another program's, or it is just being removed
            starter = int((folder / STARTER).read_text(encoding="ascii"))
            if folder.lstat().st_uid == os.getuid() and str(folder) not in used and not psutil.pid_exists(starter):
                shutil.rmtree(folder, ignore_errors=True)


def _environments() -> Iterator[Mapping[str, str]]:
    """The environments of this user's processes."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            yield process.environ()


def _private_folders() -> list[Path]:
    parents = {Path(tempfile.gettempdir()), Path(SHORT)}
    return sorted(folder for parent in parents for folder in parent.glob(f"{PREFIX}*"))


def temporary() -> str:
    """Return the folder that Ray makes its own folder `ray` in."""
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def keep_logs(environment: MutableMapping[str, str]) -> None:
    """Have `clear` leave Ray's logs: a message names them."""
    if folder := environment.get(FOLDER):
        (Path(folder) / KEEP_LOGS).touch()


def abandoned() -> list[Path]:
    """Return the folders of this user whose programs were killed."""
    return [folder for folder in _private_folders() if _is_abandoned(folder)]


def processes(folder: str | Path) -> list[psutil.Process]:
    """Return the running processes of a Ray, by its private folder; without this process and its parents."""
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    sessions = _sessions(Path(folder))
    others = (process for process in psutil.process_iter() if process.pid not in ours)
    return [process for process in others if _belongs(process, str(folder), sessions)]


def clear(folder: str | Path, *, logs: bool = False) -> int:
    """End the processes of a Ray, and remove its folders. Returns how many processes were ended. Never raises.

    Args:
        folder: its private folder.
        logs: leave its logs; they also stay after `keep_logs`.
    """
    folder = Path(folder)
    ended = _end(folder)
    for session in _sessions(folder):
        _remove_session(session, logs=logs or (folder / KEEP_LOGS).exists())
    shutil.rmtree(folder, ignore_errors=True)
    if (descriptor := _locks.pop(str(folder), None)) is not None:
        os.close(descriptor)
    return ended


def _is_abandoned(folder: Path) -> bool:
    """Whether it is a folder of this user, made by `made`, and its lock is free."""
    with contextlib.suppress(OSError):  # another program's, or it is just being removed
        if folder.lstat().st_uid != os.getuid() or str(folder) in _locks:
            return False
        descriptor = os.open(folder / OWNER, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        finally:
            os.close(descriptor)
    return False


def _end(folder: Path) -> int:
    """Kill the processes, and those that they have just started."""
    ended, deadline = 0, time.monotonic() + END_S
    while (found := processes(folder)) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
                ended += 1
        psutil.wait_procs(found, timeout=1)
    return ended


def _belongs(process: psutil.Process, folder: str, sessions: list[Path]) -> bool:
    """Whether it inherited the folder's name, or is an agent of Ray's. Ray overwrites the agents' environment."""
    with contextlib.suppress(psutil.Error, OSError):
        if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.environ().get(FOLDER) == folder:
            return True
        is_rays = "".join(process.cmdline()[:1]).startswith("ray::")
        return is_rays and any(_is_in(name, sessions) for name in _open_files(process.pid))
    return False


def _open_files(pid: int) -> Iterator[str]:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            yield str(link.readlink())


def _is_in(name: str, folders: list[Path]) -> bool:
    return any(name.startswith(f"{folder}/") for folder in folders)


def _sessions(folder: Path) -> list[Path]:
    """Ray's session folders that the owner has made. A name ends with the pid; an older one had that pid before."""
    try:
        told = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        found = Path(told["sessions"]).glob(f"session_*_{int(told['pid'])}")
        return [path for path in found if _is_own(path, told["started"])]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _is_own(path: Path, started: float) -> bool:
    found = path.lstat()
    return found.st_uid == os.getuid() and found.st_mtime >= started - CLOCK_S and not path.is_symlink()


def _remove_session(session: Path, *, logs: bool) -> None:
    if logs:
        for path in session.iterdir():
            if path.name != "logs":
                _remove(path)
        return
    shutil.rmtree(session, ignore_errors=True)
    latest = session.with_name("session_latest")
    with contextlib.suppress(OSError):
        if latest.readlink() == session:
            latest.unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
