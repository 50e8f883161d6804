"""Whether an archive was made with the handlers that run here, file by file.

An archive carries the handlers that it was tested with. A process has one package `handlers`, so several archives in
one process share the one that was imported, and `load_archive` never imports code from an archive. If the two differ,
it says so, unless the caller takes it. A process that is started with the unpacked archive first on PYTHONPATH runs
the archive's own handlers, which then are "the handlers that run here".
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from handlers import digests
from handlers.hosts.contents import ENTRIES, Contents

PACKAGE = Path(__file__).parent.parent
ENTRY_FILES = {file for file, _ in ENTRIES.values()}
MOST_NAMED = 5


class OtherVersionError(ValueError):
    """The archive carries other handlers than those that run here."""


def differences(listed: Contents, package: Path = PACKAGE) -> list[str]:
    """Return what differs between the carried and the running handlers: "changed handlers/loading.py"; sorted.

    Args:
        listed: the archive's contents.
        package: the folder of the handlers that run here.
    """
    carried = {name: digest for name, digest in listed.files.items() if name.startswith("handlers/")}
    here = {f"handlers/{path.relative_to(package).as_posix()}": path for path in _sources(package)}
    entry = ENTRIES[listed.kind][0]
    carried[entry], here[entry] = listed.files.get(entry, ""), entry_file(listed.kind, package)
    return sorted(
        [
            *(f"without {name}" for name in carried.keys() - here.keys()),
            *(f"with {name}" for name in here.keys() - carried.keys()),
            *(f"changed {name}" for name in carried.keys() & here.keys() if _digest(here[name]) != carried[name]),
        ]
    )


def refuse_other_version(listed: Contents, where: str, *, allowed: bool) -> str:
    """Return for the model's description how the running handlers compare with the carried ones.

    Args:
        where: names the archive in messages.
        allowed: take handlers that differ.

    Raises OtherVersionError with what differs and the ways out.
    """
    found = differences(listed)
    if not found:
        return "those that the archive was packaged and tested with"
    what = f"{', '.join(found[:MOST_NAMED])}{', ...' if len(found) > MOST_NAMED else ''}"
    if allowed:
        return f"other ones than the archive was packaged with, as was allowed; {len(found)} files differ: {what}"
    raise OtherVersionError(
        f"{where} was packaged with other handlers than those that run here; {len(found)} files differ: {what}. Ways "
        "out: package it again; or run the handlers that it carries, in a process of their own (scripts/predict "
        "--carried-code, or PYTHONPATH=UNPACKED_ARCHIVE); or take those that run here (allow_other_version=True, or "
        "--other-version). Their outputs are compared with the archive's fp32 samples at load either way"
    )


def entry_module(kind: str) -> str:
    """Return the module with the handler's class: in the package, or beside it if the package lies in an archive."""
    name = ENTRIES[kind][0].removesuffix(".py")
    return f"handlers.{name}" if importlib.util.find_spec(f"handlers.{name}") else name


def entry_file(kind: str, package: Path = PACKAGE) -> Path:
    """Return the file of `entry_module`."""
    name = ENTRIES[kind][0]
    return package / name if (package / name).is_file() else package.parent / name


def _sources(package: Path) -> list[Path]:
    """The files of a package that an archive carries, except the entries."""
    return [
        path
        for path in package.rglob("*")
        if path.is_file()
        and path.suffix != ".pyc"
        and "__pycache__" not in path.parts
        and path.name not in ENTRY_FILES
    ]


def _digest(path: Path) -> str:
    return digests.of_file(path) if path.is_file() else ""
