"""A file name alone is looked for in model_store/, by every command that takes an archive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import archive_paths
import deploy
import predict
import pytest
from serving_bench import option_types
from triton_host import export

from handlers.hosts.contents import CONFIG
from tests.made_archives import code_files, write_mar


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive in the model store, which is not the current folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(archive_paths, "MODEL_STORE", tmp_path)
    return write_mar(tmp_path / "mine.mar", {**code_files("image-classifier"), CONFIG: b"{}"})


TAKEN: dict[str, Callable[[str], Path]] = {
    "predict": lambda word: Path(predict.parser().parse_args([word, "-"]).archive),
    "export-triton": lambda word: Path(export.parser().parse_args([word, "folder"]).archive),
    "deploy": lambda word: Path(deploy.parser().parse_args(["name", word]).file),
    "bench_serving": lambda word: option_types.archive(word).file,
}


@pytest.mark.parametrize("command", TAKEN)
def test_every_command_looks_there(command: str, mine: Path) -> None:
    assert TAKEN[command]("mine.mar") == mine
    assert TAKEN[command](str(mine)) == mine


def test_a_file_that_is_here_comes_first(mine: Path) -> None:
    Path("mine.mar").touch()
    assert archive_paths.located("mine.mar") == "mine.mar"


def test_a_path_is_not_looked_for_there(mine: Path) -> None:
    assert archive_paths.located("folder/mine.mar") == "folder/mine.mar"


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("a.mar", ("", "a.mar")),
        ("new=a.mar", ("new", "a.mar")),
        ("new=folder/x=y.mar", ("new", "folder/x=y.mar")),
        ("folder/x=y.mar", ("", "folder/x=y.mar")),
        ("s3://bucket/x=y.mar", ("", "s3://bucket/x=y.mar")),
    ],
)
def test_a_name_stands_before_the_first_equals_sign(word: str, found: tuple[str, str]) -> None:
    assert archive_paths.split(word) == found


def test_what_is_nowhere_is_told_with_what_is_there(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        predict.main(["none.mar", "-"])
    assert ended.value.code == 2
    assert "none.mar does not exist; scripts/package makes archives; model_store/ has mine.mar" in (
        capsys.readouterr().err
    )


def test_carried_code_gets_the_unpacked_folder_for_a_bare_name(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    class Done:
        returncode = 0

    monkeypatch.setattr("subprocess.run", lambda command, **options: ran.append(command) or Done())  # type: ignore[func-returns-value]
    assert predict.main(["mine.mar", "--carried-code", "--text", "a"]) == 0
    assert ran[0][3] == ran[0][6]  # sys.path's first folder is the archive that is asked
    assert "mine.mar" not in ran[0]
