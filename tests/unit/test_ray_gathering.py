"""How a front gathers requests into calls; without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from ray_host import gathering
from ray_host.gathering import FullError, Gathering

from handlers.hosts.messages import HttpRequest, HttpResponse


def request(name: str) -> HttpRequest:
    return HttpRequest(body=name.encode())


class Replica:
    """Answers each call when it is told to."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.answers: list[asyncio.Future[Any]] = []
        self.given_up = 0

    async def send(self, requests: Sequence[HttpRequest]) -> Sequence[Any]:
        self.calls.append([one.body.decode() for one in requests])
        self.answers.append(asyncio.get_running_loop().create_future())
        try:
            found = await self.answers[-1]
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return [HttpResponse(200, {}, one.body) for one in requests] if found is None else found

    def answer(self, call: int, outcomes: Any = None) -> None:
        self.answers[call].set_result(outcomes)


async def turns(count: int = 8) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def run(test: Callable[[Replica], Awaitable[None]]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(test(Replica()), 10)

    asyncio.run(whole())


def asked(found: Gathering, names: str) -> list[asyncio.Task[HttpResponse]]:
    return [asyncio.ensure_future(found.ask(request(name))) for name in names]


def test_one_request_goes_at_once_and_those_that_come_meanwhile_go_together() -> None:
    async def test(replica: Replica) -> None:
        found = Gathering(replica.send, 3, 2, 100)
        tasks = asked(found, "a")
        await turns()
        tasks += asked(found, "b")
        await turns()
        tasks += asked(found, "cdefg")
        await turns()
        assert replica.calls == [["a"], ["b"]]
        replica.answer(0)
        await turns()
        assert replica.calls[2:] == [["c", "d", "e"]]
        replica.answer(1)
        await turns()
        assert replica.calls[3:] == [["f", "g"]]
        replica.answer(2)
        replica.answer(3)
        assert [answer.body for answer in await asyncio.gather(*tasks)] == [b"a", b"b", b"c", b"d", b"e", b"f", b"g"]

    run(test)


def test_each_request_gets_its_own_error() -> None:
    async def test(replica: Replica) -> None:
        tasks = asked(Gathering(replica.send, 3, 1, 100), "abc")
        await turns()
        replica.answer(0, [HttpResponse(200, {}, b"a"), ValueError("b"), HttpResponse(400, {}, b"c")])
        first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, HttpResponse)
        assert isinstance(third, HttpResponse)
        assert (first.body, third.status, str(second)) == (b"a", 400, "b")

    run(test)


def test_a_call_that_fails_fails_for_its_requests_and_the_next_one_goes() -> None:
    async def test(replica: Replica) -> None:
        tasks = asked(Gathering(replica.send, 2, 1, 100), "abc")
        await turns()
        replica.answers[0].set_exception(OSError("gone"))
        await turns()
        replica.answer(1)
        first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, OSError)
        assert isinstance(second, OSError)
        assert isinstance(third, HttpResponse)

    run(test)


def test_a_request_that_is_given_up_is_left_out() -> None:
    async def test(replica: Replica) -> None:
        found = Gathering(replica.send, 4, 1, 100)
        first, second, third = asked(found, "abc")
        await turns()
        fourth, fifth = asked(found, "de")
        await turns()
        fourth.cancel()
        second.cancel()
        await turns()
        replica.answer(0)
        await turns()
        assert replica.calls == [["a", "b", "c"], ["e"]]
        assert replica.given_up == 0
        replica.answer(1)
        answers = await asyncio.gather(first, third, fifth)
        assert [answer.body for answer in answers] == [b"a", b"c", b"e"]

    run(test)


def test_a_call_that_nobody_waits_for_is_cancelled_and_makes_room() -> None:
    async def test(replica: Replica) -> None:
        found = Gathering(replica.send, 2, 1, 100)
        gone = asked(found, "ab")
        await turns()
        (left,) = asked(found, "c")
        for task in gone:
            task.cancel()
        await turns()
        assert (replica.given_up, replica.calls) == (1, [["a", "b"], ["c"]])
        replica.answer(1)
        assert (await left).body == b"c"

    run(test)


def test_too_many_that_wait_are_refused() -> None:
    async def test(replica: Replica) -> None:
        found = Gathering(replica.send, 2, 1, 1)
        tasks = asked(found, "abc")
        await turns()
        with pytest.raises(FullError):
            await found.ask(request("d"))
        replica.answer(0)
        await turns()
        replica.answer(1)
        assert [answer.body for answer in await asyncio.gather(*tasks)] == [b"a", b"b", b"c"]

    run(test)


def test_a_call_has_a_bound_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "MOST_BYTES", 5)

    async def test(replica: Replica) -> None:
        found = Gathering(replica.send, 8, 8, 100)
        names = ["aaaaaaa", "bbb", "cc", "d"]
        tasks = [asyncio.ensure_future(found.ask(request(name))) for name in names]
        entries = asyncio.ensure_future(found.ask(HttpRequest(entries={"data": b"eeeee"})))
        await turns()
        assert replica.calls == [["aaaaaaa"], ["bbb", "cc"], ["d"], [""]]
        for number in range(4):
            replica.answer(number)
        await asyncio.gather(*tasks, entries)

    run(test)
