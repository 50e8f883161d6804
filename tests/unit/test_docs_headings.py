"""No page has the same heading twice: a link could not say which one it means."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests import pages

GENERATED = {"settings.md"}  # a key may stand in two sections


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: str(page.relative_to(pages.ROOT)))
def test_headings_differ(page: Path) -> None:
    if page.name in GENERATED or page.name == "CHANGELOG.md":
        return
    lines = page.read_text(encoding="utf-8").splitlines()
    titles, inside = list[str](), False
    for line in lines:
        inside ^= line.lstrip().startswith("```")
        if line.startswith("#") and not inside:
            titles.append(line.lstrip("# ").lower())
    assert [title for title, count in Counter(titles).items() if count > 1] == []
