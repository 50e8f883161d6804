"""scripts/* on a fresh clone: --help and what is wrong with the arguments come before anything is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import early_arguments
import pytest

ROOT = Path(__file__).parents[2]
# Has no package but Python's own, and makes no environment.
PYTHON = f"""#!/usr/bin/env bash
case "$*" in
    "-m venv"*) echo "an environment is made" >&2; exit 9 ;;
    *) exec {sys.executable} -I -S "$@" ;;
esac
"""
# setup and test have no arguments of a Python program.
OTHERS = ("setup", "test")
SCRIPTS = (
    *sorted(path.name for path in (ROOT / "scripts").iterdir() if path.is_file() and path.name not in OTHERS),
    "deployment/per-gpu",
)
SUBCOMMANDS = (
    *(
        ("package", command)
        for command in ("image-classifier", "text-encoder", "resnet101", "show", "sign", "keygen")
    ),
    *(("bench_model", command) for command in ("image-classifier", "text-encoder", "picture")),
)
WRONG = {
    "predict": (["none.mar", "--text", "a"], "none.mar does not exist; scripts/package makes archives"),
    "serve": (["none.mar"], "none.mar does not exist; scripts/package makes archives"),
    "serve-ray": (["none.mar"], "none.mar does not exist; scripts/package makes archives"),
    "serve-kserve": (["none.mar"], "none.mar does not exist; scripts/package makes archives"),
    "export-triton": (["none.mar", "folder"], "none.mar does not exist; scripts/package makes archives"),
    "audit": (["--ignore"], "argument --ignore: expected one argument"),
    "scale": (["digits", "none"], "'none'; wanted: "),
    "token": (["none"], "invalid choice: 'none'"),
    "package": (["text-encoder", "--weights", "folder", "--batch-size", "none"], "argument --batch-size: "),
    "bench_model": (["text-encoder", "--engines", "fused-fp17"], "'fused-fp17'; wanted: ENGINE-PRECISION, "),
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout without a .venv, where Python has no packages."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    for path in (ROOT / "scripts").iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path / "scripts" / path.name)
    for name in ("setup.cfg", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("handlers", "archive", "scripts/commands", "scripts/deployment"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("python3", "python3.13", "python3.12", "python3.11", "python3.10"):
        (tmp_path / "bin" / name).write_text(PYTHON, encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def call(clone: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    left_out = ("PYTHON", "JAVA_HOME", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    environment = {**kept, "PATH": f"{clone / 'bin'}:{os.environ['PATH']}"}
    command = [str(clone / "scripts" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=clone)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_comes_without_an_installation(clone: Path, script: str) -> None:
    done = call(clone, script, "--help")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.startswith(f"usage: scripts/{script}")
    assert "Exit status: 0" in done.stdout
    assert "StandIn" not in done.stdout
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(("script", "command"), SUBCOMMANDS)
def test_help_of_a_command_comes_without_an_installation(clone: Path, script: str, command: str) -> None:
    done = call(clone, script, command, "--help")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.startswith(f"usage: scripts/{script} {command} ")
    assert "StandIn" not in done.stdout
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("script", OTHERS)
def test_help_of_a_bash_script_is_its_comment(clone: Path, script: str) -> None:
    done = call(clone, script, "--help")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert f"scripts/{script}" in done.stdout
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_option_is_refused_without_an_installation(clone: Path, script: str) -> None:
    done = call(clone, script, "--no-such-option")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(f"usage: scripts/{script}")
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("script", sorted(WRONG))
def test_what_is_wrong_with_arguments_comes_without_an_installation(clone: Path, script: str) -> None:
    arguments, told = WRONG[script]
    done = call(clone, script, *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone / ".venv").exists()


def test_ports_that_are_equal_come_without_an_installation(clone: Path) -> None:
    (clone / "a.mar").write_bytes(b"")
    done = call(clone, "serve-ray", "a.mar", "--port", "18100", "--grpc-port", "18100")
    assert done.returncode == 2
    assert done.stderr == (
        "scripts/serve-ray: error: --port and --grpc-port are both 18100; wanted: two different ports\n"
    )


@pytest.mark.parametrize(("script", "arguments"), [("audit", []), ("serve-kserve", ["--http1_max", "3", "x.mar"])])
def test_right_arguments_and_those_of_others_are_installed_for(
    clone: Path, script: str, arguments: list[str]
) -> None:
    (clone / "x.mar").write_bytes(b"")
    done = call(clone, script, *arguments)
    assert done.returncode == 1
    assert "an environment is made" in done.stderr


@pytest.mark.parametrize("body", ["raise ValueError", "import numpy\nfor a in numpy.b: pass", "def parser(): 1 / 0"])
def test_a_module_that_cannot_be_read_early_is_installed_for(body: str, tmp_path: Path) -> None:
    (tmp_path / "strange_command.py").write_text(body, encoding="utf-8")
    command = "import sys, early_arguments as e; sys.path.insert(0, sys.argv[1]); "
    command += "sys.exit(e.main(['strange_command.py', '--help']))"
    done = subprocess.run(
        [sys.executable, "-c", command, str(tmp_path)],
        cwd=early_arguments.COMMANDS,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (early_arguments.GO_ON, "", "")
