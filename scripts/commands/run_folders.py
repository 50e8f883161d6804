"""A folder for the results of each run, so that no run overwrites those of an earlier one."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

LATEST = "latest"


@contextlib.contextmanager
def out_of(given: Path | None, parent: Path, name: str, suffixes: Sequence[str]) -> Iterator[Path]:
    """Give the path of a run's results, without their suffixes: `given`, or PARENT/TIME/NAME.

    Raises FileExistsError if an earlier run has written to `given`.
    """
    if given is not None:
        _check_unused(given, suffixes)
        given.parent.mkdir(parents=True, exist_ok=True)
        yield given
    else:
        with _new(parent) as folder:
            yield folder / name


@contextlib.contextmanager
def _new(parent: Path) -> Iterator[Path]:
    """Make a folder in `parent`, named by the time in UTC. PARENT/latest links to it afterwards.

    A folder that is still empty at the end is removed.
    """
    folder = _made(parent, datetime.datetime.now(datetime.timezone.utc))
    try:
        yield folder
    finally:
        if any(folder.iterdir()):
            _link(parent / LATEST, folder)
        else:
            folder.rmdir()


def _check_unused(out: Path, suffixes: Sequence[str]) -> None:
    for suffix in suffixes:
        file = out.with_name(f"{out.name}.{suffix}")
        if file.exists():
            raise FileExistsError(f"{file} has the results of an earlier run; name another --out, or move it away")


def _made(parent: Path, now: datetime.datetime) -> Path:
    """The first folder of that second that is not there yet: 2026-11-26_23-59-58, 2026-11-26_23-59-58-2, ..."""
    for number in count(1):
        folder = parent / f"{now:%Y-%m-%d_%H-%M-%S}{f'-{number}' if number > 1 else ''}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("count never ends")


def _link(link: Path, folder: Path) -> None:
    """Make `link` point to the folder, in one step. Some file systems have no links; then there is none."""
    fresh = link.with_name(f".{folder.name}.link")
    with contextlib.suppress(OSError):
        fresh.symlink_to(folder.name)
        fresh.replace(link)
    fresh.unlink(missing_ok=True)
