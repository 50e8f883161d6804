"""What scripts/deployment/ray/node gives Ray's processes, and that it becomes `ray start`; without Ray."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import ray_node
from ray_host import door, leftovers, node, tunables
from server.paths import ROOT


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with a HAProxy that runs, and with Ray's token."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("ray_host.leftovers.LONGEST_FOLDER", 500)
    program = tmp_path / "real-haproxy"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    return {tunables.BINARY: str(program), "RAY_AUTH_TOKEN": "a secret"}


def test_haproxy_runs_as_for_one_machine_and_has_no_address_of_its_own(given: dict[str, str], tmp_path: Path) -> None:
    node.choose(given)
    assert given[tunables.BINARY] == str(tunables.OWN_HAPROXY)
    assert given[tunables.PROGRAM] == str(tmp_path / "real-haproxy")
    assert Path(given[tunables.ERRORS]).is_file()
    assert tunables.HOST not in given
    assert (given[tunables.HA_PROXY], given["RAY_SERVE_ENABLE_DIRECT_INGRESS"]) == ("1", "1")
    folder = Path(given["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_serve_ray_of_the_same_machine_does_not_take_it_for_left(given: dict[str, str]) -> None:
    """It would end the processes."""
    from ray_host import leftovers

    node.choose(given)
    assert leftovers.FOLDER not in given
    assert leftovers.abandoned() == []


def test_what_a_user_has_set_stays(given: dict[str, str]) -> None:
    given |= {"RAY_worker_niceness": "5", "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "600", "PYTHONPATH": "/mine"}
    node.choose(given)
    assert (given["RAY_worker_niceness"], given["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"]) == ("5", "600")
    assert given["PYTHONPATH"].split(os.pathsep) == [str(ROOT), str(ROOT / "scripts" / "commands"), "/mine"]


def test_all_machines_have_one_token_for_their_fronts_and_no_other_cluster_has_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("a secret\n")
    by_value = node.door_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a secret"})
    assert by_value == node.door_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)})
    assert by_value != node.door_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another"})
    assert "a secret" not in str(by_value)


def test_without_rays_token_there_is_none_for_the_fronts(given: dict[str, str], tmp_path: Path) -> None:
    assert node.door_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}) is None
    given["RAY_AUTH_MODE"] = "disabled"
    node.choose(given)
    assert door.TOKEN not in given


def test_a_machine_whose_haproxy_does_not_run_is_refused(given: dict[str, str], tmp_path: Path) -> None:
    """The other machines would count on it."""
    given[tunables.BINARY] = str(tmp_path / "none")
    with pytest.raises(OSError, match="does not run"):
        node.choose(dict(given))
    given[tunables.HA_PROXY] = "0"
    node.choose(given)
    assert given["RAY_SERVE_ENABLE_DIRECT_INGRESS"] == "0"


def ended() -> int:
    """The pid of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def test_folders_of_machines_that_run_no_more_are_removed(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder stays as long as its `ray start`, or a process that this has started, runs."""
    monkeypatch.setattr(leftovers, "SHORT", tempfile.gettempdir())
    node.choose(given)
    folder = Path(given[leftovers.NODE])
    assert Path(given["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent == folder
    leftovers.remove_node_folders()
    assert folder.is_dir()
    (folder / leftovers.STARTER).write_text(str(ended()))
    with subprocess.Popen(["sleep", "60"], env={**os.environ, leftovers.NODE: str(folder)}) as raylet:
        leftovers.remove_node_folders()
        assert folder.is_dir()
        raylet.kill()
    another = Path(tempfile.mkdtemp(prefix=leftovers.PREFIX))  # of another program
    leftovers.remove_node_folders()
    assert (folder.exists(), another.exists()) == (False, True)


def test_stop_removes_the_folder(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def stopped(command: list[str], *, check: bool) -> Any:
        calls.append(command[1:])
        return subprocess.CompletedProcess(command, 3)

    node.choose(given)
    folder = Path(given[leftovers.NODE])
    (folder / leftovers.STARTER).write_text(str(ended()))
    monkeypatch.setattr(subprocess, "run", stopped)
    monkeypatch.setattr(sys, "argv", ["ray_node.py", "stop", "--force"])
    with pytest.raises(SystemExit) as exit_:
        ray_node.main()
    assert (exit_.value.code, calls, folder.exists()) == (3, [["stop", "--force"]], False)


def test_it_becomes_ray_start(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(os, "environ", given)
    monkeypatch.setattr(os, "chdir", started.append)
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    monkeypatch.setattr(sys, "argv", ["ray_node.py", "--head", "--port=1"])
    ray_node.main()
    folder, (program, words, environment) = started
    assert folder == ROOT
    assert words == [program, "start", "--head", "--port=1"]
    assert Path(program) == Path(sys.executable).with_name("ray")
    assert environment[door.TOKEN]


def test_why_it_does_not_is_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, tunables.BINARY: str(tmp_path / "none"), "PYTHONPATH": ""}
    command = [sys.executable, str(ROOT / "scripts" / "commands" / "ray_node.py"), "--head"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr.count("\n")) == (1, 1), told.stderr
    assert "RAY_SERVE_ENABLE_HA_PROXY=0" in told.stderr
