"""The search of scripts/tune on servers that are made up, and what it puts into effect."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import tune
import yaml
from server.errors import ServerError
from serving_bench import apply_choice
from serving_bench.search import Choice, Search, doubled, halved

START = Choice(1, 32, 5)


class Server:
    """Requests/s grow with workers up to 4 and with batches up to 64; a batch takes 1 ms an item."""

    def __init__(self, **changes: Any) -> None:
        self.asked: list[tuple[Choice, int]] = []
        self.changes = changes

    def measure(self, choice: Choice, clients: int) -> dict[str, Any]:
        self.asked.append((choice, clients))
        filled = min(clients, choice.batch_size * choice.workers)
        rate = (
            100 * min(choice.workers, 4) * min(choice.batch_size, 64) * filled / (choice.batch_size * choice.workers)
        )
        p99 = choice.delay_ms + min(choice.batch_size, clients) + clients / 8
        sound = {"errors": 0, "answers_wrong": 0, "statuses": {}, "failures": {}, "messages": {}}
        return {"requests_per_s": rate, "p99_ms": p99} | sound | self.changes


def search(server: Any, p99_ms: float | None) -> Search:
    return Search(server.measure, p99_ms, lambda _: None)


def test_the_most_requests() -> None:
    server = Server()
    best = search(server, None).run(START, 8, 256)
    assert best is not None
    assert best.choice == Choice(4, 64, 5)
    assert len({choice for choice, _ in server.asked}) <= 12
    assert len(server.asked) == len(set(server.asked))


def test_within_a_p99() -> None:
    server = Server()
    best = search(server, 20).run(START, 8, 64)
    assert best is not None
    assert best.p99_ms <= 20
    worse = search(server, 8).run(START, 8, 64)
    assert worse is not None
    assert worse.p99_ms <= 8
    assert worse.requests_per_s < best.requests_per_s


def test_no_setting_is_quick_enough() -> None:
    assert search(Server(), 1).run(START, 8, 64) is None


@pytest.mark.parametrize("changes", [{"errors": 1}, {"answers_wrong": 1}, {"p99_ms": None}])
def test_a_setting_with_errors_is_not_taken(changes: dict[str, Any]) -> None:
    assert search(Server(**changes), None).run(START, 2, 32) is None


def test_workers_that_do_not_load_end_the_climb() -> None:
    class Small(Server):
        def measure(self, choice: Choice, clients: int) -> dict[str, Any]:
            if choice.workers > 2:
                raise ServerError("CUDA out of memory")
            return super().measure(choice, clients)

    best = search(Small(), None).run(START, 8, 32)
    assert best is not None
    assert best.choice.workers == 2


def test_steps() -> None:
    assert doubled(1, 6) == [2, 4, 6]
    assert doubled(8, 8) == []
    assert halved(6) == [3, 1]


CONFIG = "# why\nminWorkers: 1\nmaxWorkers: 1\nbatchSize: 8 # images\nhandler:\n  batchSize: 5\n"


def test_the_choice_is_written_into_the_archive_and_nothing_else(tmp_path: Path) -> None:
    mar = tmp_path / "m.mar"
    with zipfile.ZipFile(mar, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model-config.yaml", CONFIG)
        archive.writestr("weights", b"x" * 1000)
        archive.writestr(zipfile.ZipInfo("stored"), b"y")
    apply_choice.write(mar, Choice(4, 64, 2))
    with zipfile.ZipFile(mar) as archive:
        text = archive.read("model-config.yaml").decode()
        assert archive.read("weights") == b"x" * 1000
        assert archive.getinfo("weights").compress_type == zipfile.ZIP_DEFLATED
        assert archive.getinfo("stored").compress_type == zipfile.ZIP_STORED
        assert archive.testzip() is None
    wanted = {"minWorkers": 4, "maxWorkers": 4, "batchSize": 64, "maxBatchDelay": 2, "handler": {"batchSize": 5}}
    assert yaml.safe_load(text) == wanted
    assert "# why" in text
    assert [file.name for file in tmp_path.iterdir()] == ["m.mar"]


def test_an_archive_without_a_config(tmp_path: Path) -> None:
    mar = tmp_path / "m.mar"
    with zipfile.ZipFile(mar, "w") as archive:
        archive.writestr("weights", b"x")
    with pytest.raises(ValueError, match=r"no model-config.yaml; use --apply"):
        apply_choice.write(mar, START)


@pytest.mark.parametrize(
    "arguments", [["digits"], ["digits", "--p99-ms", "0"], ["digits", "--p99-ms", "5", "--max-throughput"]]
)
def test_a_goal_has_to_be_given(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tune.main(arguments)
    assert "--p99-ms" in capsys.readouterr().err


def test_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["nobody", "--max-throughput"]) == 1
    assert "scripts/package makes archives" in capsys.readouterr().err
