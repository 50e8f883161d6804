"""A front that ends refuses new requests, answers those that it has, and says so to those that it gives up."""

from __future__ import annotations

import asyncio

import pytest
from ray_host import door as doors
from ray_host.door import ClosedError, Door


async def answer(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "an answer"


async def inside(door: Door, count: int, seconds: float) -> list[asyncio.Task[str]]:
    tasks = [asyncio.ensure_future(door.through(answer(seconds))) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


def test_who_is_inside_gets_an_answer_and_nobody_else_comes_in() -> None:
    async def run() -> None:
        door = Door()
        tasks = await inside(door, 3, 0.02)
        assert door.close() == 3
        with pytest.raises(ClosedError):
            await door.through(answer(0))
        assert await asyncio.gather(*tasks) == ["an answer"] * 3
        assert door.close() == 0

    asyncio.run(run())


def test_who_takes_too_long_is_told() -> None:
    async def run() -> None:
        door = Door()
        tasks = await inside(door, 2, 60)
        door.close()
        door.clear()
        door.clear()
        told = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in told] == [ClosedError] * 2
        assert door.close() == 0

    asyncio.run(run())


def test_a_client_that_goes_is_none_that_is_sent_out() -> None:
    async def run() -> None:
        door = Door()
        (gone, stays) = await inside(door, 2, 0.02)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert door.close() == 1
        assert await stays == "an answer"

    asyncio.run(run())


def test_an_error_leaves_by_the_door() -> None:
    async def wrong() -> str:
        raise ValueError("wrong")

    async def run() -> None:
        door = Door()
        with pytest.raises(ValueError, match="wrong"):
            await door.through(wrong())
        assert door.close() == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    ("own", "sent", "is_known"),
    [
        ("7e57", "7e57", True),
        ("7e57", "7e58", False),
        ("7e57", None, False),
        ("7e57", "é", False),
        (None, None, True),
    ],
)
def test_only_requests_with_the_own_token_come_in(
    own: str | None, sent: str | None, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(doors.TOKEN, raising=False)
    if own is not None:
        monkeypatch.setenv(doors.TOKEN, own)
    assert doors.is_known(sent) == is_known
