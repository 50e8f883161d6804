"""What scripts/serve-kserve refuses before a model loads; without KServe."""

from __future__ import annotations

import argparse
from pathlib import Path

import archive_paths
import pytest
from kserve_host import command_line
from server.ports import free_ports

from handlers.hosts.contents import CONFIG
from tests.made_archives import code_files, write_mar


def mar(folder: Path, name: str = "a") -> Path:
    folder.mkdir(exist_ok=True)
    return write_mar(folder / f"{name}.mar", {**code_files("image-classifier"), CONFIG: b"{}"})


def parsed(*words: object) -> argparse.Namespace:
    return command_line.parser().parse_args([str(word) for word in words])


def test_a_bare_name_is_looked_for_in_the_model_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_paths, "MODEL_STORE", tmp_path)
    assert command_line.check(parsed("mine.mar" if mar(tmp_path, "mine") else "")) == [tmp_path / "mine.mar"]
    with pytest.raises(SystemExit) as ended:
        parsed("none.mar")
    assert ended.value.code == 2


def test_two_archives_of_one_name_are_refused_before_they_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.check(parsed(mar(tmp_path / "one"), mar(tmp_path / "two")))
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert "have the same model name, 'a'; wanted: archives of different names" in printed
    assert printed.count("\n") == 1
    with pytest.raises(SystemExit):
        command_line.check(parsed(mar(tmp_path / "one"), tmp_path / "one" / "a.mar"))


def test_an_address_that_is_not_here_is_no_taken_port() -> None:
    (port,) = free_ports(1)
    with pytest.raises(OSError, match=r"this machine has no address 203\.0\.113\.9.*choose one of them with --host"):
        command_line.refuse_address("203.0.113.9", port)
    with pytest.raises(OSError, match=r"70000 is no port; wanted: 1 to 65535; choose another one with --http_port"):
        command_line.refuse_address("127.0.0.1", 70000)


def test_an_option_of_kserves_is_left_to_kserve(tmp_path: Path) -> None:
    command_line.arguments(["--http1_max", "3", "none.mar"])
    with pytest.raises(SystemExit):
        command_line.arguments(["none.mar"])
    command_line.arguments([str(mar(tmp_path))])
