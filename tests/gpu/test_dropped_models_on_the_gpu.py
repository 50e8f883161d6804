"""A model that a replica has dropped gives its GPU memory back: many may follow one another in a process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from ray_host.shelf import Held

from handlers import HttpRequest, async_load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

DIGITS = Path(__file__).parents[2] / "archive" / "digits"
ROUNDS = 6


def test_models_that_follow_one_another_take_no_more_memory(digits_mar: Path) -> None:
    async def used() -> int:
        """Load a model, ask it and drop it, as a replica does. Returns the bytes that are allocated afterwards."""
        held = Held(await async_load(digits_mar, device="cuda"), lambda: None)
        held.take()
        dropping = asyncio.ensure_future(held.close())
        answer = await held.model.answer(HttpRequest(body=(DIGITS / "samples" / "seven.png").read_bytes()))
        held.give_back()
        await dropping
        assert answer.status == 200
        return torch.cuda.memory_allocated()

    async def all_rounds() -> list[int]:
        return [await used() for _ in range(ROUNDS)]

    after = asyncio.run(all_rounds())
    assert after[-1] <= after[1], after  # libraries keep their workspaces of the first ones
