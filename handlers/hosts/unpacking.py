"""A .mar -> a private folder with exactly the files that its provenance lists. Nothing of it is executed."""

from __future__ import annotations

import contextlib
import shutil
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from handlers import digests
from handlers.hosts import contents, private_folders
from handlers.hosts.contents import ArchiveError, Contents

MOST_FILES = 10_000
MOST_BYTES_READ = 16 << 20  # of the provenance, and of the manifest
ADDED = (contents.MANIFEST, contents.PROVENANCE)  # hold the time, and the digests: they are in no list
COPIED_AT_ONCE = 1 << 20  # bytes
DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError, ValueError)


@contextlib.contextmanager
def archive_folder(path: Path, *, edited_settings: bool = False) -> Iterator[tuple[Path, Contents]]:
    """Yield the checked folder of an archive, and its contents.

    A .mar is unpacked into a folder that only this user can read (private_folders.py). It is removed afterwards.
    A folder is taken as an archive that was unpacked before, and stays.

    Args:
        path: of a .mar or a folder.
        edited_settings: take a model-config.yaml that was edited after packaging.

    Raises ArchiveError, or OSError if there is no room.
    """
    if path.is_dir():
        yield path, check(path, edited_settings=edited_settings)
        return
    with private_folders.private_folder() as private:
        try:
            yield private, unpack(path, private, edited_settings=edited_settings)
        finally:
            digests.forget(private)


def unpack(mar: Path, folder: Path, *, edited_settings: bool = False) -> Contents:
    """Write the files of a .mar into an empty folder, and return its contents.

    Args:
        mar: the archive.
        folder: is made if it is not there. If this fails, it may hold a part of the files.
        edited_settings: take a model-config.yaml that was edited after packaging.

    Raises ArchiveError, which names each file that is missing, added or changed; OSError if there is no room.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ArchiveError(f"{folder} is not empty; wanted: a folder for {mar} alone")
    try:
        with zipfile.ZipFile(mar) as archive:
            entries = _entries(archive, str(mar))
            listed = _contents_of(archive, entries, str(mar))
            _refuse_others([entry.filename for entry in entries], listed, str(mar))
            _refuse_no_room(entries, folder, str(mar))
            for entry in entries:
                _write(archive, entry, folder)
    except FileNotFoundError:
        raise ArchiveError(f"there is no {mar}") from None
    except ArchiveError:
        raise
    except DAMAGES as error:
        raise ArchiveError(f"{mar} is no model archive, or is damaged: {error}") from None
    except (FileExistsError, NotADirectoryError):
        raise ArchiveError(f"{mar} is damaged: one of its files is another's folder") from None
    _refuse_changed(folder, listed, str(mar), edited_settings=edited_settings)
    return listed


def check(folder: Path, *, edited_settings: bool = False) -> Contents:
    """Return the contents of an archive that was unpacked before. Raises ArchiveError, as `unpack`.

    Folders `__pycache__` are passed over: Python writes them where it imports the archive's own handlers.
    """
    try:
        provenance, manifest = (_read_start(folder / name) for name in (contents.PROVENANCE, contents.MANIFEST))
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name
        raise ArchiveError(f"{folder} is no unpacked archive: it holds no {missing}") from None
    listed = contents.parsed(provenance, manifest, str(folder))
    names = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if "__pycache__" in name.split("/"):
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArchiveError(f"{folder} is not what was packaged: {name} is no regular file")
        if path.is_file():
            names.append(name)
    _refuse_others(names, listed, str(folder))
    _refuse_changed(folder, listed, str(folder), edited_settings=edited_settings)
    return listed


def _refuse_changed(folder: Path, listed: Contents, where: str, *, edited_settings: bool) -> None:
    """Raises ArchiveError, which names each file with another digest than the one that was recorded."""
    changed = [name for name, digest in listed.files.items() if digests.of_file(folder / name) != digest]
    if edited_settings and contents.CONFIG in changed:
        changed.remove(contents.CONFIG)
    if not changed:
        return
    way = ""
    if changed == [contents.CONFIG]:
        way = "; if you have edited it, say so: edited_settings=True, or scripts/predict --edited-settings"
    raise ArchiveError(f"{where} is not what was packaged: changed {', '.join(sorted(changed))}{way}")


def settings_were_edited(folder: Path, listed: Contents) -> bool:
    """Return whether the folder's model-config.yaml is another than the packaged one."""
    return digests.of_file(folder / contents.CONFIG) != listed.files.get(contents.CONFIG)


def _entries(archive: zipfile.ZipFile, where: str) -> list[zipfile.ZipInfo]:
    """The files in the zip archive; folders are left out. Raises ArchiveError for what no packaging writes."""
    entries = archive.infolist()
    if len(entries) > MOST_FILES:
        raise ArchiveError(f"{where} holds {len(entries)} files; at most {MOST_FILES} are unpacked")
    doubles = [name for name, count in Counter(entry.filename for entry in entries).items() if count > 1]
    if doubles:
        raise ArchiveError(f"{where} holds {doubles[0]!r} twice")
    for entry in entries:
        if why := _why_refused(entry):
            raise ArchiveError(f"{where} holds {entry.filename!r}, {why}; nothing was unpacked")
    return [entry for entry in entries if not entry.is_dir()]


def _why_refused(entry: zipfile.ZipInfo) -> str | None:
    """Why an entry is not unpacked: it would lead out of the folder, or is no plain file."""
    name = entry.filename.removesuffix("/")
    parts = name.split("/")
    if PurePosixPath(name).is_absolute() or "\\" in name or ":" in parts[0] or {"", ".", ".."} & set(parts):
        return "which would lead out of its folder"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "which is a link or a device"
    if entry.flag_bits & 1:
        return "which is encrypted"
    return None


def _contents_of(archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo], where: str) -> Contents:
    by_name = {entry.filename: entry for entry in entries}
    if contents.PROVENANCE not in by_name:
        raise ArchiveError(f"{where} holds no {contents.PROVENANCE}: it was not made by this packaging script")
    if contents.MANIFEST not in by_name:
        raise ArchiveError(f"{where} is not what was packaged: missing {contents.MANIFEST}")
    provenance, manifest = (_start(archive.open(by_name[name])) for name in (contents.PROVENANCE, contents.MANIFEST))
    return contents.parsed(provenance, manifest, where)


def _refuse_others(names: Sequence[str], listed: Contents, where: str) -> None:
    """Raises ArchiveError unless exactly the listed files are there."""
    found = set(names) - set(ADDED)
    problems = [
        *(f"missing {name}" for name in listed.files.keys() - found),
        *(f"added {name}" for name in found - listed.files.keys()),
    ]
    if problems:
        raise ArchiveError(f"{where} is not what was packaged: {', '.join(sorted(problems)[:20])}")


def _refuse_no_room(entries: Sequence[zipfile.ZipInfo], folder: Path, where: str) -> None:
    wanted, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
    if wanted > free:
        raise OSError(
            f"{where} has {wanted:,} bytes when it is unpacked, and {folder} has room for {free:,}; the environment "
            "variable TMPDIR names another folder"
        )


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    """Write one file. zipfile reads no more bytes than the entry's size says."""
    target = folder / entry.filename
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with archive.open(entry) as source, target.open("xb") as stream:
        shutil.copyfileobj(source, stream, COPIED_AT_ONCE)


def _read_start(path: Path) -> bytes:
    return _start(path.open("rb"))


def _start(stream: IO[bytes]) -> bytes:
    """The whole of a small file. A larger one is cut, and is no JSON then."""
    with stream:
        return stream.read(MOST_BYTES_READ)
