"""The bars of README's picture are those of the benchmarks' JSON files."""

from __future__ import annotations

import pytest
import readme_picture


@pytest.mark.parametrize("group", readme_picture.GROUPS, ids=lambda group: group.run)
def test_every_bar_of_the_picture_was_measured(group: readme_picture.Group) -> None:
    found = readme_picture.bars(group)
    assert [name for name, _ in found] == list(group.names.values())
    assert all(speed > 0 for _, speed in found)


def test_the_picture_is_there() -> None:
    assert readme_picture.PICTURE.is_file()
