"""AsyncModel on a model that is made up: batches, errors, calls that are given up, and closing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, cast

import pytest

from handlers.hosts.async_model import AsyncModel, BusyError
from handlers.hosts.messages import HttpRequest, HttpResponse
from handlers.hosts.model import Model, ModelClosedError, PythonCall
from handlers.protocol.errors import InvalidInput


class FakeModel:
    """Answers an input with itself, upper case; "bad" with an error, and "broken" by failing as a whole."""

    name, batch_size, max_delay_s = "fake", 4, 0.02

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.is_closed = False
        self.may_run = threading.Event()
        self.may_run.set()

    def calls_of(self, inputs: Sequence[object], options: Mapping[str, object]) -> list[PythonCall]:
        return [PythonCall(inputs[start : start + 2], options) for start in range(0, len(inputs), 2)]

    def run(self, calls: Sequence[Any]) -> list[Any]:
        self.may_run.wait(10)
        self.batches.append(len(calls))
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        if any("broken" in getattr(call, "inputs", ()) for call in calls):
            raise RuntimeError("the run is broken")
        return [self.answer(call) for call in calls]

    def answer(self, call: Any) -> Any:
        if isinstance(call, HttpRequest):
            return HttpResponse(200, {}, call.body)
        return [InvalidInput("a bad input") if value == "bad" else value.upper() for value in call.inputs]

    def close(self) -> None:
        self.is_closed = True


Work = Callable[[AsyncModel, FakeModel], Coroutine[Any, Any, None]]


def with_model(work: Work, fake: FakeModel | None = None, **options: Any) -> FakeModel:
    """Run `work` with an AsyncModel, which has to close within a time."""
    fake = fake or FakeModel()

    async def main() -> None:
        async with AsyncModel(cast("Model", fake), **options) as model:
            await work(model, fake)

    asyncio.run(asyncio.wait_for(main(), 20))
    assert fake.is_closed
    return fake


def test_concurrent_calls_go_together_in_one_thread() -> None:
    async def work(model: AsyncModel, fake: FakeModel) -> None:
        answers = await asyncio.gather(
            *(model.predict([f"a{n}"]) for n in range(10)), model.answer(HttpRequest(body=b"x"))
        )
        assert answers == [*([f"A{n}"] for n in range(10)), HttpResponse(200, {}, b"x")]
        assert fake.batches == [4, 4, 3]
        assert len(fake.threads) == 1
        assert threading.get_ident() not in fake.threads

    with_model(work)


def test_a_lone_call_waits_for_others_no_longer_than_the_delay() -> None:
    async def work(model: AsyncModel, fake: FakeModel) -> None:
        began = time.perf_counter()
        assert await model.predict(["a"]) == ["A"]
        assert 0.015 < time.perf_counter() - began < 5
        late = asyncio.gather(model.predict(["a"]), _later(0.005, lambda: model.predict(["b"])))
        assert list(await late) == [["A"], ["B"]]
        assert fake.batches == [1, 2]

    with_model(work)


async def _later(seconds: float, call: Callable[[], Coroutine[Any, Any, list[Any]]]) -> list[Any]:
    await asyncio.sleep(seconds)
    return await call()


def test_a_full_batch_waits_for_nothing() -> None:
    async def work(model: AsyncModel, fake: FakeModel) -> None:
        await asyncio.gather(*(model.predict(["a"]) for _ in range(4)))
        assert fake.batches == [4]

    began = time.perf_counter()
    with_model(work, max_delay_s=15)
    assert time.perf_counter() - began < 10


def test_a_call_of_many_inputs_is_cut_and_put_together_again() -> None:
    async def work(model: AsyncModel, fake: FakeModel) -> None:
        assert await model.predict(list("abcdefghijk")) == list("ABCDEFGHIJK")
        assert await model.predict([]) == []
        assert fake.batches == [4, 2]

    with_model(work)


def test_a_bad_input_is_its_calls_own() -> None:
    async def work(model: AsyncModel, fake: FakeModel) -> None:
        calls = [
            model.predict(["a"]),
            model.predict(["b", "bad"]),
            model.predict(["bad", "c"], return_errors=True),
        ]
        found: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        good, bad, kept = found
        assert good == ["A"]
        assert str(bad) == "input 2 of 2: a bad input"
        assert [type(kept[0]), kept[1]] == [InvalidInput, "C"]
        assert fake.batches == [3]

    with_model(work)


def test_a_run_that_fails_fails_its_batch_and_no_other() -> None:
    async def work(model: AsyncModel, fake: FakeModel) -> None:
        calls = [model.predict([word]) for word in ("broken", "b", "c", "d", "e")]
        *failed, good = await asyncio.gather(*calls, return_exceptions=True)
        assert [str(error) for error in failed] == ["the run is broken"] * 4
        assert good == ["E"]

    with_model(work)


def test_calls_that_are_given_up_are_not_run_and_hurt_nobody() -> None:
    async def work(model: AsyncModel, fake: FakeModel) -> None:
        fake.may_run.clear()
        calls = [asyncio.create_task(model.predict([f"a{n}"])) for n in range(8)]
        await asyncio.sleep(0.1)  # four of them are in the run
        for given_up in (calls[1], calls[5], calls[6]):
            given_up.cancel()
        await asyncio.sleep(0)
        fake.may_run.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [n for n, answer in enumerate(answers) if isinstance(answer, asyncio.CancelledError)] == [1, 5, 6]
        assert [answers[n] for n in (0, 2, 3, 4, 7)] == [[f"A{n}"] for n in (0, 2, 3, 4, 7)]
        assert fake.batches == [4, 2]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.predict(["a"]), 0.001)
        assert await model.predict(["b"]) == ["B"]

    with_model(work)


def test_closing_answers_what_waits_and_refuses_the_rest() -> None:
    async def work(model: AsyncModel, fake: FakeModel) -> None:
        calls = [asyncio.create_task(model.predict([f"a{n}"])) for n in range(9)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(model.close())
        await asyncio.sleep(0)
        with pytest.raises(ModelClosedError):
            await model.predict(["late"])
        assert await asyncio.gather(*calls) == [[f"A{n}"] for n in range(9)]
        await closing
        assert fake.is_closed

    with_model(work, FakeModel(seconds=0.05))


def test_closing_does_not_wait_for_the_delay() -> None:
    async def work(model: AsyncModel, fake: FakeModel) -> None:
        call = asyncio.create_task(model.predict(["a"]))
        await asyncio.sleep(0.05)
        began = time.perf_counter()
        await model.close()
        assert time.perf_counter() - began < 5
        assert await call == ["A"]

    with_model(work, max_delay_s=15)


def test_too_many_that_wait() -> None:
    async def work(model: AsyncModel, fake: FakeModel) -> None:
        fake.may_run.clear()
        calls = [asyncio.create_task(model.predict(["a"])) for _ in range(4)]
        await asyncio.sleep(0.1)
        calls += [asyncio.create_task(model.predict(["a"])) for _ in range(4)]
        await asyncio.sleep(0)
        assert model.waiting == 4
        with pytest.raises(BusyError, match="4 calls wait for fake"):
            await model.predict(["a"])
        fake.may_run.set()
        assert await asyncio.gather(*calls) == [["A"]] * 8
        assert await model.predict(["a"]) == ["A"]

    with_model(work, max_waiting=4)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_delay_s": -1}])
def test_impossible_batches_are_refused(options: dict[str, Any]) -> None:
    async def main() -> None:
        AsyncModel(cast("Model", FakeModel()), **options)

    with pytest.raises(ValueError, match="wants a number"):
        asyncio.run(main())
