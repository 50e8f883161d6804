"""What was measured for an archive's own copy of the handlers holds for an installed one, and the other way round."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from handlers.hosts import contents
from handlers.selection import results_cache


def test_the_entries_are_those_of_archives() -> None:
    assert set(results_cache.ENTRIES) == {file for file, _ in contents.ENTRIES.values()}


def test_a_copy_without_the_entries_has_the_same_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = results_cache.source_digest.__wrapped__()
    copy = tmp_path / "handlers"
    shutil.copytree(
        results_cache.HANDLERS, copy, ignore=shutil.ignore_patterns("__pycache__", *results_cache.ENTRIES)
    )
    monkeypatch.setattr(results_cache, "HANDLERS", copy)
    assert results_cache.source_digest.__wrapped__() == here
    (copy / "loading.py").write_text("other", encoding="utf-8")
    assert results_cache.source_digest.__wrapped__() != here
