"""Results of earlier runs of scripts/bench_serving and scripts/soak stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import run_folders
from serving_bench import command, options
from soak import command as soak_command

SUFFIXES = ("json", "csv")


def run(parent: Path, text: str = "", given: Path | None = None) -> Path:
    with run_folders.out_of(given, parent, "digits-cpu", SUFFIXES) as out:
        if text:
            out.with_name(f"{out.name}.json").write_text(text)
    return out


def test_each_run_has_a_folder_and_latest_is_the_last_one(tmp_path: Path) -> None:
    outs = [run(tmp_path, text) for text in ("one", "two", "three")]
    assert len({out.parent for out in outs}) == 3
    assert [Path(f"{out}.json").read_text() for out in outs] == ["one", "two", "three"]
    assert (tmp_path / "latest" / "digits-cpu.json").read_text() == "three"
    assert (tmp_path / "latest").readlink() == Path(outs[-1].parent.name)


def test_a_run_without_results_leaves_nothing_and_latest_as_it_was(tmp_path: Path) -> None:
    first = run(tmp_path, "one")
    with pytest.raises(KeyboardInterrupt), run_folders.out_of(None, tmp_path, "x", SUFFIXES):
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([first.parent.name, "latest"])
    assert (tmp_path / "latest" / "digits-cpu.json").read_text() == "one"


def test_an_out_that_was_used_is_refused(tmp_path: Path) -> None:
    given = tmp_path / "mine.of.today"
    run(tmp_path, "one", given)
    with pytest.raises(FileExistsError, match=r"mine\.of\.today\.json has the results of an earlier run"):
        run(tmp_path, "two", given)
    assert Path(f"{given}.json").read_text() == "one"


def measured(bench: Any, about: dict[str, Any]) -> None:
    bench.save(bench)


def test_the_bench_keeps_earlier_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    chosen = options.parser().parse_args(["--address", "http://127.0.0.1:9/x"])
    for _ in range(2):
        assert command._run(chosen, "digits", measured) == 0
    assert len(list(tmp_path.glob("2*/digits-*.json"))) == 2
    (last,) = (tmp_path / "latest").glob("*.json")
    assert json.loads(last.read_text())["rows"] == []
    assert f"{last.name}" in capsys.readouterr().out


def test_the_soak_refuses_an_out_that_was_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "night.md").write_text("of yesterday")
    monkeypatch.setattr("sys.argv", ["soak", "--only", "--out", str(tmp_path / "night")])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert soak_command.main() == 1
    assert "night.md has the results of an earlier run" in capsys.readouterr().err
