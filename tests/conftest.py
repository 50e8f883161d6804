"""What holds for the tests of all folders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from handlers.selection import cpu_timing


@pytest.fixture(scope="session", autouse=True)
def _timed_briefly() -> Iterator[None]:
    """On a CPU, engines are timed with the fewest runs; no test of these processes depends on which is fastest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_timing, "ENOUGH_S", 0.0)
        yield
