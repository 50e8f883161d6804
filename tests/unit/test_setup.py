"""scripts/setup on a fresh clone: what it says does not get into what the scripts that call it print."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Makes a .venv whose Python is itself; pip chatters as it does, and every other script prints its answer.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "venv chatters" ;;
    "-m pip"*) echo "Collecting torch==2.13.0"; echo "Installing collected packages: torch"; echo "a warning" >&2 ;;
    "--version") echo "Python 3.12.0" ;;
    "-c"*) ;;
    *) echo "the answer" ;;
esac
"""
SCRIPTS = ("token", "scale", "package", "serve", "ready", "bench_model", "predict")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout without a .venv; its folder bin holds the Python and the Java that are found."""
    (tmp_path / "scripts").mkdir()
    for name in ("setup", *SCRIPTS):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts" / name)
    for name in ("setup.cfg", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    programs = {"python3": PYTHON, "java": "#!/bin/sh\necho 'openjdk version \"21.0.1\"' >&2\n"}
    (tmp_path / "bin").mkdir()
    for name, content in programs.items():
        (tmp_path / "bin" / name).write_text(content, encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def call(clone: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "JAVA_HOME")}
    environment = {**kept, "PATH": f"{clone / 'bin'}:{os.environ['PATH']}"}
    command = [str(clone / "scripts" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_first_call_prints_the_answer_alone(clone: Path, script: str) -> None:
    first, second = call(clone, script), call(clone, script)
    assert (first.returncode, first.stdout) == (0, "the answer\n"), first.stderr
    assert "installing" in first.stderr
    assert "Collecting" not in first.stderr
    assert "torch==2.13.0" in first.stderr
    assert (second.returncode, second.stdout, second.stderr) == (0, "the answer\n", "")


def test_to_serve_it_installs_what_the_machine_serves_with(clone: Path) -> None:
    wanted = "gpu" if Path("/dev/nvidia0").exists() else "cpu"
    assert f"installing serve demo {wanted} (" in call(clone, "serve").stderr


def test_what_keeps_it_from_installing_is_no_answer(clone: Path) -> None:
    python = clone / "bin" / "python3"
    python.write_text(PYTHON.replace('echo "venv chatters"', "false"), encoding="utf-8")
    done = call(clone, "token")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot make a virtual environment" in done.stderr


def test_a_missing_python_is_named(clone: Path) -> None:
    for name in ("python3", "python3.13", "python3.12", "python3.11", "python3.10"):
        (clone / "bin" / name).write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        (clone / "bin" / name).chmod(0o755)
    done = call(clone, "token")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no Python 3.10 to 3.13 found" in done.stderr


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_installs_nothing(clone: Path, option: str) -> None:
    shutil.copy(ROOT / "scripts" / "test", clone / "scripts" / "test")
    for script, says in (("setup", "scripts/setup EXTRA"), ("test", "scripts/test tests/unit")):
        done = call(clone, script, option)
        assert (done.returncode, done.stderr) == (0, "")
        assert says in done.stdout
        assert "Exit status" in done.stdout
        assert "set -e" not in done.stdout
    assert not (clone / ".venv").exists()


def test_an_extra_that_does_not_exist_is_refused_before_anything_is_installed(clone: Path) -> None:
    done = call(clone, "setup", "serve", "tensor")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no extra 'tensor'; wanted: serve gpu" in done.stderr
    assert "tensorrt" in done.stderr
    assert not (clone / ".venv").exists()
