"""Models that share a process are loaded, lent and dropped; without Ray, with a cache that does what Ray's does."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray_host import heap, shelf
from ray_host.gone import NotLoadedError, ReplicaGoneError
from ray_host.shelf import Held, Shelf

from handlers import ArchiveError


class Model:
    """Says when it is closed."""

    def __init__(self, key: str, log: list[str]) -> None:
        self.key, self.log, self.model = key, log, SimpleNamespace(is_healthy=True)

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.log.append(f"closed {self.key}")


class Cache:
    """The least recently used model goes first; one load at a time: _ModelMultiplexWrapper of Ray 2.60."""

    def __init__(self, most: int) -> None:
        self.most, self.lock, self.held, self.log = most, asyncio.Lock(), OrderedDict[str, Held](), list[str]()
        self.errors: dict[str, Exception] = {}
        self.unchecked: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.shelf = Shelf(self.check, self.fetch, 5.0, 3)

    async def check(self, key: str) -> None:
        self.log.append(f"checked {key}")
        if key in self.unchecked:
            raise self.unchecked[key]

    async def fetch(self, key: str) -> Held:
        if key in self.held:
            self.held.move_to_end(key)
            return self.held[key]
        async with self.lock:
            if key in self.held:
                return self.held[key]
            if len(self.held) >= self.most:
                _, dropped = self.held.popitem(last=False)
                await dropped.__del__()
            self.held[key] = await self.load(key)
            return self.held[key]

    async def load(self, key: str) -> Held:
        await (self.gates[key].wait() if key in self.gates else asyncio.sleep(0))
        if key in self.errors:
            raise self.errors[key]
        self.log.append(f"loaded {key}")
        model: Any = Model(key, self.log)
        return self.shelf.put(key, model, 0.5)

    async def use(self, key: str, until: asyncio.Event | None = None) -> str:
        async with self.shelf.lent(key) as model:
            if until is not None:
                await until.wait()
            assert f"closed {key}" not in self.log[self.since(f"loaded {key}") :]
            found: Any = model
            return str(found.key)

    def since(self, entry: str) -> int:
        return len(self.log) - 1 - self.log[::-1].index(entry)

    def states(self, keys: str) -> list[str]:
        return [self.shelf.state(key)["state"] for key in keys]


def run(most: int, test: Callable[[Cache], Awaitable[None]]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(test(Cache(most)), 10)

    asyncio.run(whole())


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "give_back", lambda: None)


def test_the_least_recently_used_model_is_dropped_and_comes_back() -> None:
    async def test(cache: Cache) -> None:
        for key in "abac":
            assert await cache.use(key) == key
        assert cache.states("abc") == ["loaded", "not loaded", "loaded"]
        assert await cache.use("b") == "b"
        assert cache.states("abc") == ["not loaded", "loaded", "loaded"]
        assert [entry for entry in cache.log if not entry.startswith("checked")] == [
            "loaded a", "loaded b", "closed b", "loaded c", "closed a", "loaded b",
        ]  # fmt: skip
        assert cache.shelf.state("b")["loads"] == 2

    run(2, test)


def test_requests_for_one_model_share_its_load() -> None:
    async def test(cache: Cache) -> None:
        assert await asyncio.gather(*map(cache.use, "aaa")) == ["a"] * 3
        assert cache.log.count("loaded a") == 1

    run(1, test)


def test_a_model_is_closed_when_the_requests_that_have_it_are_answered() -> None:
    async def test(cache: Cache) -> None:
        done = asyncio.Event()
        flying = [asyncio.ensure_future(cache.use("a", done)) for _ in range(2)]
        await turns()
        other = asyncio.ensure_future(cache.use("b"))
        await turns()
        assert (cache.states("ab"), other.done()) == (["not loaded", "loading"], False)
        again = asyncio.ensure_future(cache.use("a"))  # waits for a load of its own
        done.set()
        assert await asyncio.gather(*flying, other, again) == ["a", "a", "b", "a"]
        assert cache.log.count("loaded a") == 2

    run(1, test)


def test_models_that_drop_each_other_are_all_answered() -> None:
    """With room for one, a model that was just loaded must be lent before the next load drops it."""

    async def test(cache: Cache) -> None:
        async def client(key: str) -> None:
            for _ in range(20):
                assert await cache.use(key) == key

        await asyncio.gather(*map(client, "abc"))
        assert cache.log.count("loaded a") <= 20

    run(1, test)


def test_a_load_goes_on_without_the_request_that_began_it() -> None:
    async def test(cache: Cache) -> None:
        cache.gates["a"] = asyncio.Event()
        first, second = (asyncio.ensure_future(cache.use("a")) for _ in range(2))
        await turns()
        first.cancel()
        await turns()
        assert cache.shelf.state("a") == {"state": "loading", "requests": 1, "loads": 0}
        cache.gates["a"].set()
        assert await second == "a"
        assert cache.shelf.state("a") == {"state": "loaded", "requests": 0, "loads": 1, "lastLoadTook": 0.5}
        await cache.use("b")  # the request that was given up does not hold the model

    run(1, test)


def test_a_request_that_is_given_up_as_its_model_comes_does_not_hold_it() -> None:
    async def test(cache: Cache) -> None:
        task = asyncio.ensure_future(cache.use("a"))
        while "loaded a" not in cache.log:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await cache.use("b") == "b"

    run(1, test)


def test_a_request_waits_for_a_limited_time_and_the_load_goes_on() -> None:
    async def test(cache: Cache) -> None:
        cache.gates["a"] = asyncio.Event()
        with pytest.raises(NotLoadedError) as caught:
            async with cache.shelf.lent("a", waited_s=4.95):
                pass
        assert (caught.value.status, caught.value.kind) == (503, "ModelLoading")
        assert "after 5 s" in caught.value.message
        cache.gates["a"].set()
        await turns()
        assert cache.states("a") == ["loaded"]
        async with cache.shelf.lent("a", waited_s=100):  # a loaded model is not waited for
            pass

    run(1, test)


def test_a_limited_number_of_requests_wait_and_loaded_models_go_on() -> None:
    async def test(cache: Cache) -> None:
        await cache.use("z")
        cache.gates |= {key: asyncio.Event() for key in "ab"}
        tasks = [asyncio.ensure_future(cache.use(key)) for key in "aab"]
        await turns()
        for key in "ac":
            with pytest.raises(NotLoadedError) as caught:
                await cache.use(key)
            assert (caught.value.status, caught.value.kind) == (503, "Busy")
        assert await cache.use("z") == "z"
        for gate in cache.gates.values():
            gate.set()
        assert await asyncio.gather(*tasks) == ["a", "a", "b"]

    run(3, test)


def test_an_archive_that_is_broken_drops_no_model_and_is_not_read_again_at_once() -> None:
    async def test(cache: Cache) -> None:
        cache.unchecked["x"] = ArchiveError("x.mar is damaged")
        await cache.use("a")
        for _ in range(3):
            with pytest.raises(NotLoadedError, match=r"x\.mar is damaged") as caught:
                await cache.use("x")
            assert caught.value.status == 500
        assert cache.log.count("checked x") == 1
        assert cache.states("ax") == ["loaded", "failed"]
        with pytest.raises(NotLoadedError):
            cache.shelf.refuse_failed("x")
        cache.shelf.refuse_failed("a")

    run(1, test)


def test_a_model_that_was_dropped_for_one_that_does_not_load_comes_back() -> None:
    async def test(cache: Cache) -> None:
        cache.errors["x"] = ValueError("a setting is wrong")
        await cache.use("a")
        with pytest.raises(NotLoadedError, match="a setting is wrong"):
            await cache.use("x")
        await turns()
        assert cache.states("ax") == ["loaded", "failed"]

    run(1, test)


def test_a_failure_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "KNOWN_S", 0.0)

    async def test(cache: Cache) -> None:
        cache.errors["x"] = OSError("no room")
        with pytest.raises(NotLoadedError, match="no room"):
            await cache.use("x")
        del cache.errors["x"]
        assert await cache.use("x") == "x"
        assert cache.states("x") == ["loaded"]

    run(1, test)


def test_an_error_of_another_kind_is_told_by_its_class_alone() -> None:
    async def test(cache: Cache) -> None:
        cache.errors["x"] = RuntimeError("what nobody has looked at")
        with pytest.raises(NotLoadedError, match="does not load: RuntimeError") as caught:
            await cache.use("x")
        assert "nobody" not in caught.value.message

    run(1, test)


def test_a_lost_gpu_is_no_failure_of_the_model() -> None:
    async def test(cache: Cache) -> None:
        cache.errors["x"] = ReplicaGoneError("the GPU is lost")
        with pytest.raises(ReplicaGoneError):
            await cache.use("x")
        assert cache.states("x") == ["not loaded"]

    run(1, test)


def test_closing_waits_for_loads() -> None:
    async def test(cache: Cache) -> None:
        cache.gates["a"] = asyncio.Event()
        task = asyncio.ensure_future(cache.use("a"))
        await turns()
        closing = asyncio.ensure_future(cache.shelf.close())
        await turns()
        assert not closing.done()
        cache.gates["a"].set()
        await closing
        assert await task == "a"

    run(1, test)
