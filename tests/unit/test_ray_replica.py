"""A replica whose GPU is lost ends its process, and says so to the front; without Ray, without a GPU."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ray_host.gone import ReplicaGoneError

from handlers import HttpRequest
from handlers.hosts.model import ModelClosedError, ModelLostError


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A replica that has not loaded anything."""
    if "ray" not in sys.modules:
        monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    module = importlib.import_module("ray_host.replica")
    monkeypatch.setattr(module, "GOODBYE_S", 0)
    # Ray awaits __del__, and nobody does here.
    kind: Any = type("Quiet", (module.Replica,), {"__del__": lambda self: None})
    made: Any = kind.__new__(kind)
    made._is_closing = False
    yield made
    sys.modules.pop("ray_host.replica")


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error, self.model = error, SimpleNamespace(is_healthy=not isinstance(error, ModelLostError))

    async def answer(self, request: HttpRequest) -> None:
        raise self.error


@pytest.mark.parametrize(("error", "ends"), [(ModelLostError("x"), [3]), (ModelClosedError("x"), [])])
def test_the_front_is_told_to_ask_another_one(
    error: Exception, ends: list[int], replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    replica._model = Failing(error)

    async def ask() -> None:
        for _ in range(2):
            with pytest.raises(ReplicaGoneError):
                await replica.answer(HttpRequest())
        await asyncio.sleep(0.05)

    asyncio.run(ask())
    assert exits == ends


def test_the_health_check_ends_a_process_without_its_gpu(replica: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    replica._model = Failing(ModelLostError("x"))

    async def check() -> None:
        with pytest.raises(RuntimeError, match="GPU is lost"):
            await replica.check_health()
        await asyncio.sleep(0.05)

    asyncio.run(check())
    assert exits == [3]
