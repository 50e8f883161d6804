"""README's picture and figures are those of the benchmarks' JSON files."""

from __future__ import annotations

import json
import re

import pytest
import readme_picture

from tests.pages import ROOT


@pytest.mark.parametrize("group", readme_picture.GROUPS, ids=lambda group: group.run)
def test_every_bar_of_the_picture_was_measured(group: readme_picture.Group) -> None:
    found = readme_picture.bars(group)
    assert [name for name, _ in found] == list(group.names.values())
    assert all(speed > 0 for _, speed in found)


def test_the_picture_is_there() -> None:
    assert readme_picture.PICTURE.is_file()


def test_figures_of_readme_were_measured() -> None:
    runs = (ROOT / "docs" / "benchmarks").glob("serving-*.json")
    rows = [row for run in runs for row in json.loads(run.read_text(encoding="utf-8"))["rows"]]
    measured = {f"{row['items_per_s']:,.0f}" for row in rows if row["kind"] == "archive"}
    named = re.findall(r"([\d,]+) \w+/s", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(named) == 2
    assert set(named) <= measured
