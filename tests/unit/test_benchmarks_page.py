"""The tables of README.md and docs/benchmarks.md are those of the JSON files in docs/benchmarks."""

from __future__ import annotations

import benchmarks_page
import pytest
from benchmarks_page import FOLDER, PAGES


def test_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks_page.main(["--check"]) == 0, capsys.readouterr().err


def test_old_table_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(benchmarks_page.TABLES, "resnet101-h200", lambda: ["| other |"])
    assert benchmarks_page.main(["--check"]) == 1
    assert "docs/benchmarks.md" in capsys.readouterr().err


def test_every_run_is_named() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [path.name for path in FOLDER.glob("*.json") if f"benchmarks/{path.name}" not in text] == []


def test_every_table_stands_on_one_page() -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    names = [found[2] for text in texts for found in benchmarks_page.MARKED.finditer(text)]
    assert sorted(names) == sorted(benchmarks_page.TABLES)


def test_text_between_empty_tables_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks_page, "TABLES", {"a": lambda: ["| 1 |"], "b": lambda: ["| 2 |"]})
    empty = "<!-- table: a -->\n<!-- end -->\nwords\n<!-- table: b -->\n<!-- end -->\n"
    full = "<!-- table: a -->\n\n| 1 |\n\n<!-- end -->\nwords\n<!-- table: b -->\n\n| 2 |\n\n<!-- end -->\n"
    assert benchmarks_page.filled(empty) == full
    assert benchmarks_page.filled(full) == full


def test_cells_come_from_the_named_run(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"precision": "fp16", "length": None, "mix": None, "ms_p50": 0.125, "items_per_s": 8000.4}
    content = {"conditions": {"commit": "abc"}, "rows": [{**row, "engine": "one", "batch": 1}]}
    monkeypatch.setattr(benchmarks_page, "read", lambda run: content)
    columns = [
        benchmarks_page.Column("One", "run", "one", "fp16"),
        benchmarks_page.Column("Two", "run", "two", "fp16"),
    ]
    found = benchmarks_page.engines("batch", columns, [(1, None, None)])
    assert found[2:] == ["| 1 | 8,000 (0.12) | - |", "| commit | abc | abc |"]
