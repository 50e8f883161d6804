"""What scripts/serve makes of the archives on its command line, without a TorchServe."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import archive_paths
import own_archives
import pytest
import serve
from serving_bench.archives import CONFIG, MANIFEST, Archive


def make(folder: Path, name: str, settings: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr(MANIFEST, "{}")
        archive.writestr(CONFIG, settings)
    return folder / name


def test_a_file_or_a_name_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make(tmp_path, "mine.mar")
    assert own_archives.own_archive(str(file)) == Archive("mine", file)
    assert own_archives.own_archive(f"new={file}") == Archive("new", file)
    monkeypatch.setattr(archive_paths, "MODEL_STORE", tmp_path)
    assert own_archives.own_archive("new=mine.mar") == Archive("new", file)  # a name alone: of the model store


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("absent.mar", "absent.mar does not exist; scripts/package makes archives"),
        (__file__, "is no .mar archive"),
        ("a b={file}", "'a b' cannot name a model; wanted: letters"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, given: str, why: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=why):
        own_archives.own_archive(given.format(file=make(tmp_path, "mine.mar")))


def test_archives_that_cannot_be_served_together(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a", "mine.mar"), make(tmp_path / "b", "yours.mar")
    assert own_archives.misplaced([Archive("mine", first)]) == ""
    assert "'x'; wanted: a name for each" in own_archives.misplaced([Archive("x", first), Archive("x", first)])
    apart = own_archives.misplaced([Archive("mine", first), Archive("yours", second)])
    assert apart == f"archives lie in {tmp_path / 'a'} and in {tmp_path / 'b'}; wanted: all in one folder"


def test_it_waits_as_long_as_torchserve_lets_a_model_load(tmp_path: Path) -> None:
    quick = Archive("quick", make(tmp_path, "quick.mar"))
    slow = Archive("slow", make(tmp_path, "slow.mar", "startupTimeout: 1200"))
    assert own_archives.timeout_s([quick]) == own_archives.LEAST_TIMEOUT_S
    assert own_archives.timeout_s([quick, slow]) > 1200


def test_what_serves_in_one_line() -> None:
    about = {
        "kind": "text-encoder",
        "engine": {"name": "fused"},
        "precision": {"name": "fp16", "why": "auto"},
        "device": {"name": "H100"},
    }
    assert own_archives.summary("mine", about) == "mine: engine fused, precision fp16 (auto), H100"
    assert "not of this project" in own_archives.summary("other", {})


def test_the_server_has_the_archives_and_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "ROOT", tmp_path)
    first, second = make(tmp_path, "a.mar"), make(tmp_path, "b.mar")
    server = serve.server_of(serve.parser().parse_args([str(first), f"new={second}"]))
    assert (server.model_store, server.models) == (tmp_path, ["a=a.mar", "new=b.mar"])
