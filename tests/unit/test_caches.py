"""Where plans are kept: in a home, or without one; nowhere that another user may write to."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from handlers import caches
from handlers.engines import plans

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a home whom the system does not know, as in OpenShift; the folder for temporary files."""

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    caches._another.cache_clear()
    return folder


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A path that not even root can make."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "home"


@pytest.mark.usefixtures("nobody")
def test_in_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert plans.default_cache() == tmp_path / "home/.cache/torchserve-fast-handlers/plans"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert plans.default_cache() == tmp_path / "xdg/torchserve-fast-handlers/plans"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert plans.default_cache() == tmp_path / "home/.cache/torchserve-fast-handlers/plans"
    assert not (tmp_path / "home").exists()


@pytest.mark.usefixtures("nobody")
def test_a_home_serves_if_the_xdg_folder_cannot_be_written_to(
    tmp_path: Path, unwritable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(unwritable))
    assert plans.default_cache() == tmp_path / "home/.cache/torchserve-fast-handlers/plans"


def test_the_xdg_folder_serves_a_user_without_a_home(
    nobody: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert plans.default_cache() == tmp_path / "xdg/torchserve-fast-handlers/plans"


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_locations_are_the_same_on_every_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    assert plans.default_cache() == tmp_path / ".cache/torchserve-fast-handlers/plans"


def test_without_a_home(nobody: Path) -> None:
    assert plans.default_cache() == nobody / f"torchserve-fast-handlers-{os.getuid()}/plans"
    assert plans.default_cache() == plans.default_cache()
    assert plans.default_cache().parent.stat().st_mode & 0o777 == 0o700


def test_with_a_home_that_cannot_be_written_to(
    nobody: Path, unwritable: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(unwritable))
    monkeypatch.setenv("XDG_CACHE_HOME", str(unwritable))
    with caplog.at_level("INFO"):
        found = plans.default_cache()
        plans.default_cache()
    assert found.is_relative_to(nobody)
    assert caplog.text.count("no home can be written to") == 1


def test_what_is_there_serves_though_it_cannot_be_written_to(
    nobody: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans that an image brings."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(caches, "_is_writable", lambda path: False)
    brought = tmp_path / ".cache/torchserve-fast-handlers/plans"
    brought.mkdir(parents=True)
    assert plans.default_cache().is_relative_to(nobody)
    (brought / "0123").mkdir()
    assert plans.default_cache() == brought


@pytest.mark.parametrize("how", ["others may write", "a link", "another's"])
def test_a_folder_that_others_control_is_not_used(nobody: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Anyone may put a folder of this name there, with a plan in it."""
    path = nobody / f"torchserve-fast-handlers-{os.getuid()}"
    if how == "a link":
        (nobody / "elsewhere").mkdir(mode=0o700)
        path.symlink_to(nobody / "elsewhere")
    else:
        path.mkdir()
        path.chmod(0o777 if how == "others may write" else 0o700)
    if how == "another's":
        uid = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: uid)
        path.rename(nobody / f"torchserve-fast-handlers-{os.getuid()}")
    found = plans.default_cache()
    assert found.parent.parent == nobody
    assert found == plans.default_cache()
    assert not found.parent.name.endswith(f"-{os.getuid()}")


def test_nowhere_at_all(nobody: Path, unwritable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(unwritable))
    assert not plans.default_cache().exists()


@pytest.mark.usefixtures("nobody")
def test_a_tilde_that_nobody_knows_is_refused_by_name() -> None:
    assert caches.named("/plans") == Path("/plans")
    with pytest.raises(ValueError, match="planCache is ~/plans"):
        caches.named("~/plans")


def test_triton_compiles_where_it_can(nobody: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    caches.keep_triton_cache()
    assert "TRITON_CACHE_DIR" not in os.environ
    monkeypatch.delenv("HOME")
    caches.keep_triton_cache()
    assert Path(os.environ["TRITON_CACHE_DIR"]).is_relative_to(nobody)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/theirs")
    caches.keep_triton_cache()
    assert os.environ["TRITON_CACHE_DIR"] == "/theirs"


CHILD = """
import pwd, sys
from pathlib import Path

def unknown(uid):
    raise KeyError(uid)

pwd.getpwuid = unknown
from archive.trial_run import TrialContext
from handlers.text_encoder import TextEncoder

encoder = TextEncoder()
section = {"precision": "fp32", "device": "cpu", "maxTokens": 32}
encoder.initialize(TrialContext(Path(sys.argv[1]), "one", {"handler": section}))
print(len(encoder.handle([{"body": "a text"}], TrialContext(Path(), "one", {}))))
"""


def test_a_text_encoder_serves_a_user_without_a_home(minilm_folder: Path, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", CHILD, str(minilm_folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=ROOT, env={**clean, "TMPDIR": str(tmp_path)}
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
