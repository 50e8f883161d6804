"""A .mar is unpacked whole and as it was packaged, or not at all; nothing leaves its folder."""

from __future__ import annotations

import json
import shutil
import stat
import warnings
import zipfile
from pathlib import Path

import pytest

from handlers import digests
from handlers.hosts import contents, unpacking
from handlers.hosts.contents import ArchiveError
from tests.made_archives import added_files, write_mar

FILES = {"model-config.yaml": b"handler: {}\n", "labels.json": b"[]", "deep/er/weights": b"\0" * 3000}


@pytest.fixture
def mar(tmp_path: Path) -> Path:
    return write_mar(tmp_path / "tiny.mar", FILES)


def refused(path: Path, folder: Path) -> str:
    """The message with which an archive is refused."""
    with pytest.raises(ArchiveError) as error:
        unpacking.unpack(path, folder)
    return str(error.value)


def with_entry(path: Path, info: zipfile.ZipInfo, data: bytes = b"x") -> Path:
    """The archive with one more entry, listed as if it belonged there."""
    files = {**FILES, info.filename: data}
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in {**FILES, **added_files(files, path.stem, "image-classifier")}.items():
            archive.writestr(name, content)
        archive.writestr(info, data)
    return path


def test_every_file_is_there_and_private(mar: Path, tmp_path: Path) -> None:
    with unpacking.archive_folder(mar) as (folder, listed):
        assert {name: (folder / name).read_bytes() for name in listed.files} == FILES
        assert (listed.name, listed.kind) == ("tiny", "image-classifier")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
    assert not [key for key in digests._found if folder in key[0].parents]


def test_an_unpacked_folder_is_an_archive_too_and_stays(mar: Path, tmp_path: Path) -> None:
    unpacking.unpack(mar, tmp_path / "there")
    (tmp_path / "there" / "handlers" / "__pycache__").mkdir(parents=True)
    (tmp_path / "there" / "handlers" / "__pycache__" / "x.pyc").write_bytes(b"x")
    with unpacking.archive_folder(tmp_path / "there") as (folder, listed):
        assert listed.files.keys() == FILES.keys()
    assert folder.is_dir()


@pytest.mark.parametrize(
    "name",
    [
        "../escaped",
        "/escaped",
        "deep/../../escaped",
        "deep//x",
        "./x",
        "..\\escaped",
        "C:/x",
        "deep/er/weights/below",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "inner" / "folder"
    assert refused(with_entry(tmp_path / "tiny.mar", zipfile.ZipInfo(name)), folder)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    assert "link or a device" in refused(with_entry(tmp_path / "tiny.mar", info, b"/etc/passwd"), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    assert "twice" in refused(with_entry(tmp_path / "tiny.mar", zipfile.ZipInfo("labels.json")), tmp_path / "out")


def test_an_encrypted_file_is_refused(mar: Path, tmp_path: Path) -> None:
    data = bytearray(mar.read_bytes())
    place = data.index(b"labels.json", data.index(b"PK\x01\x02")) - 46
    data[place + 8] |= 1
    mar.write_bytes(data)
    assert "encrypted" in refused(mar, tmp_path / "out")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"evil.py": b"boom"}, "added evil.py"),
        ({"handlers/evil.py": b"boom"}, "added handlers/evil.py"),
        ({"labels.json": b"{}"}, "changed labels.json"),
        ({"model-config.yaml": b"handler: {topK: 1}\n"}, "edited_settings=True"),
    ],
)
def test_files_that_are_not_listed_so_are_refused(tmp_path: Path, extra: dict[str, bytes], message: str) -> None:
    assert message in refused(write_mar(tmp_path / "tiny.mar", FILES, extra=extra), tmp_path / "out")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    mar = tmp_path / "tiny.mar"
    with zipfile.ZipFile(mar, "w") as archive:
        for name, data in added_files(FILES, "tiny", "image-classifier").items():
            archive.writestr(name, data)
    assert "missing deep/er/weights, missing labels.json" in refused(mar, tmp_path / "out")


def test_edited_settings_are_taken_if_that_is_said(tmp_path: Path) -> None:
    mar = write_mar(tmp_path / "tiny.mar", FILES, extra={"model-config.yaml": b"handler: {topK: 1}\n"})
    with unpacking.archive_folder(mar, edited_settings=True) as (folder, listed):
        assert unpacking.settings_were_edited(folder, listed)
    both = write_mar(tmp_path / "tiny.mar", FILES, extra={"model-config.yaml": b"{}", "labels.json": b"{}"})
    with (
        pytest.raises(ArchiveError, match=r"changed labels\.json$"),
        unpacking.archive_folder(both, edited_settings=True),
    ):
        pass


@pytest.mark.parametrize("key", ["digest", "version", "parity", "kind", "entry"])
def test_a_provenance_that_was_changed_is_refused(mar: Path, tmp_path: Path, key: str) -> None:
    with zipfile.ZipFile(mar) as archive:
        provenance = json.loads(archive.read(contents.PROVENANCE))
    provenance[key] = "other"
    changed = write_mar(mar, FILES, extra={contents.PROVENANCE: json.dumps(provenance).encode()})
    assert refused(changed, tmp_path / "out")


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"{}", b"[" * 200_000, b'{"model": []}', b'{"model": {}}'])
@pytest.mark.parametrize("name", [contents.PROVENANCE, contents.MANIFEST])
def test_a_provenance_or_manifest_of_another_form_is_refused(tmp_path: Path, name: str, text: bytes) -> None:
    assert refused(write_mar(tmp_path / "tiny.mar", FILES, extra={name: text}), tmp_path / "out")


@pytest.mark.parametrize("cut", [0, 10, 500, 1500, -1])
def test_a_damaged_file_is_refused(mar: Path, tmp_path: Path, cut: int) -> None:
    mar.write_bytes(mar.read_bytes()[:cut])
    assert refused(mar, tmp_path / "out")


def test_a_flipped_byte_is_found(mar: Path, tmp_path: Path) -> None:
    data = bytearray(mar.read_bytes())
    data[data.index(b"\0" * 3000) + 7] ^= 1
    mar.write_bytes(data)
    assert refused(mar, tmp_path / "out")


def test_what_is_there_already_is_not_written_over(mar: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert "not empty" in refused(mar, tmp_path / "out")
    assert "there is no" in refused(tmp_path / "none.mar", tmp_path / "other")


def test_an_archive_without_room_says_how_much_it_wants(
    mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(OSError, match=r"room for 100; .* TMPDIR"):
        unpacking.unpack(mar, tmp_path / "out")


def test_a_folder_is_checked_as_a_mar_is(mar: Path, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    unpacking.unpack(mar, folder)
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(ArchiveError, match="link is no regular file"):
        unpacking.check(folder)
    (folder / "link").unlink()
    (folder / "more").touch()
    with pytest.raises(ArchiveError, match="added more"):
        unpacking.check(folder)
    (folder / "more").unlink()
    (folder / "labels.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArchiveError, match=r"changed labels\.json"):
        unpacking.check(folder)
    with pytest.raises(ArchiveError, match=r"no provenance\.json"):
        unpacking.check(tmp_path)
