"""What scripts/deployment/ray/node gives Ray's processes, and that it becomes `ray start`; without Ray."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray_node
from ray_host import door, node, tunables
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
