"""What a deployment file for Ray Serve may say, and where its archives lie; without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray_host import archives
from ray_host.options import DIGEST, AppOptions

from handlers import ArchiveError
from tests.made_archives import model_files, write_mar

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENT = ROOT / "scripts" / "deployment" / "ray" / "cluster.yaml"


@pytest.fixture
def mar(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return write_mar(tmp_path / "a.mar", model_files(tmp_path / "files", "image-classifier", {"batchSize": 7}))


def options(**model: Any) -> AppOptions:
    return AppOptions.of({"models": [{"archive": "a.mar", **model}]})


def test_the_file_of_the_tree_is_right() -> None:
    (application,) = yaml.safe_load(DEPLOYMENT.read_text(encoding="utf-8"))["applications"]
    assert AppOptions.of(application["args"]).fronts == 2
    assert application["import_path"] == "ray_host.app:build"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "models"),
        ({"models": []}, "models"),
        ({"models": ["a.mar"]}, "model 1 of args wants an archive"),
        ({"models": [{"archive": "a", "gpus": 1}]}, "unknown key 'gpus'"),
        ({"model": []}, "unknown key 'model'"),
        ({"models": [{"archive": "a"}], "fronts": 0}, "fronts is 0"),
    ],
)
def test_wrong_args_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        AppOptions.of(given)


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": 0},
        {"replicas": True},
        {"replicas": 3, "max_replicas": 2},
        {"max_replicas": 2, "autoscaling": {"upscale_delay": 1}},
        {"max_replicas": 2, "autoscaling": {"upscale_delay_s": -1}},
        {"max_replicas": 2, "autoscaling": ["upscale_delay_s"]},
        {"autoscaling": {"upscale_delay_s": 1}},
        {"num_gpus": 2},
        {"num_gpus": -0.5},
        {"num_gpus": float("nan")},
        {"num_cpus": "2"},
        {"num_cpus": float("inf")},
        {"batch_size": 0},
        {"max_delay_ms": -1},
        {"max_queued": 0},
        {"timeout_s": 0},
        {"archive": ""},
        {"name": 7},
        {"digest": "abc"},
        {"settings": []},
        {"edited_settings": "no"},
        {"allow_other_version": 1},
        {"resources": []},
        {"precision": 16},
    ],
    ids=str,
)
def test_a_wrong_value_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(reversed(wrong))):
        options(**wrong)


def test_what_an_archive_says_of_itself(mar: Path) -> None:
    told = archives.head(mar)
    assert (told.name, told.version, told.batch_size) == ("a", "1.0", 7)
    assert DIGEST.fullmatch(told.digest)


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_what_is_no_archive_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "b.mar"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"b\.mar"):
        archives.head(path)


def test_paths_and_file_urls_are_read_where_they_are(mar: Path) -> None:
    assert archives.local(str(mar), None) == mar
    assert archives.local(mar.as_uri(), None) == mar


def test_a_url_is_downloaded_once_under_its_digest(
    mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digest = archives.head(mar).digest
    memory = fsspec.filesystem("memory")
    memory.pipe("/store/a.mar", mar.read_bytes())
    found = archives.local("memory://store/a.mar", digest)
    assert found.read_bytes() == mar.read_bytes()
    memory.rm("/store/a.mar")
    assert archives.local("memory://store/a.mar", digest) == found
    archives.forget("memory://store/a.mar", found)
    with pytest.raises(ArchiveError, match="cannot be read: FileNotFoundError"):
        archives.local("memory://store/a.mar", digest)
    assert not [path for path in found.parent.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("digest", [None, "sha256:12", "../../x"])
def test_a_url_without_a_digest_is_refused_and_not_shown(digest: str | None) -> None:
    with pytest.raises(ArchiveError, match="wants its digest") as caught:
        archives.local("s3://user:S3CRET@bucket/a.mar", digest)
    assert "S3CRET" not in str(caught.value)
