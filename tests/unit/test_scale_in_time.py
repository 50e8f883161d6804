"""How long scripts/scale waits, and what it says of that."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from server.client import Client
from server.errors import NotReadyError
from server.http import Answer
from updates.scaling import scale


class Loading(Client):
    """A model whose workers never become ready."""

    def describe(self, model: str, version: str = "") -> dict[str, Any]:
        return {"workers": [{"id": "9000", "status": "LOADING"}]}

    def manage(self, *_: Any, **__: Any) -> Answer:
        return Answer(202, {}, b"{}")


@pytest.mark.parametrize(("limit_s", "told"), [(0.5, r"in 0\.5 s"), (1.25, r"in 1\.25 s")])
def test_it_waits_as_long_as_it_says(limit_s: float, told: str, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(NotReadyError, match=told):
        scale(Loading(tmp_path, {}), "m", 2, limit_s)
    assert limit_s <= time.monotonic() - started < limit_s + 0.4


def test_workers_that_are_ready_count_even_if_no_time_is_left(tmp_path: Path) -> None:
    class Ready(Loading):
        def describe(self, model: str, version: str = "") -> dict[str, Any]:
            return {"workers": [{"id": "9000", "status": "READY"}]}

    Ready(tmp_path, {}).scale("m", 1, 0.0)
