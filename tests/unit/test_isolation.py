"""One poisonous input fails alone; a lost GPU ends the worker."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handlers.protocol.errors import InferenceFailed
from handlers.serving import isolation
from handlers.serving.isolation import run_isolated


class Worker:
    """Answers tenfold; fails on a batch that holds poison, or that is larger than its memory."""

    def __init__(self, poison: set[int] | None = None, fits: int = 1000) -> None:
        self.poison, self.fits = poison or set(), fits
        self.sizes: list[int] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.sizes.append(len(items))
        if len(items) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. CUDA error: pretend")
        if self.poison.intersection(items):
            raise ValueError("poison")
        return [item * 10 for item in items]


def outcomes(results: Sequence[int | InferenceFailed]) -> list[int | None]:
    return [None if isinstance(result, InferenceFailed) else result for result in results]


@given(st.integers(1, 80).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=8))))
def test_only_poison_fails_and_order_stays(case: tuple[int, set[int]]) -> None:
    count, poison = case
    results = run_isolated(Worker(poison), range(count))
    assert outcomes(results) == [None if item in poison else item * 10 for item in range(count)]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12).flatmap(
        lambda sizes: st.tuples(
            st.just(sizes), st.sets(st.integers(0, sum(sizes) - 1), max_size=30), st.integers(1, sum(sizes))
        )
    )
)
def test_only_requests_with_poison_fail(case: tuple[list[int], set[int], int]) -> None:
    """Up to MOST_CULPRITS of them; each item of the others is answered, however little fits into memory."""
    sizes, poison, fits = case
    owners = [owner for owner, size in enumerate(sizes) for _ in range(size)]
    bad = {owners[item] for item in poison}
    answers = outcomes(run_isolated(Worker(poison, fits), range(len(owners)), owners))
    for owner in set(owners) - bad if len(bad) <= isolation.MOST_CULPRITS else ():
        assert [answers[item] for item in range(len(owners)) if owners[item] == owner] == [
            item * 10 for item in range(len(owners)) if owners[item] == owner
        ]
    for owner in bad:
        mine = [item for item in range(len(owners)) if owners[item] == owner]
        assert None in [answers[item] for item in mine]
        if len(bad) <= isolation.MOST_CULPRITS:  # the first error is of an input that fails
            assert next(item for item in mine if answers[item] is None) in poison


def test_a_good_batch_runs_once() -> None:
    work = Worker()
    assert run_isolated(work, range(9)) == [item * 10 for item in range(9)]
    assert work.sizes == [9]


def test_nothing_is_not_run() -> None:
    work = Worker()
    assert run_isolated(work, []) == []
    assert work.sizes == []


def test_one_poison_costs_a_logarithm_of_runs() -> None:
    work = Worker({37})
    run_isolated(work, range(64))
    assert len(work.sizes) == 13  # the whole, and two halves on each of six levels


@pytest.mark.parametrize(("count", "fits"), [(8, 4), (8, 1), (7, 3), (9, 8)])
def test_out_of_memory_halves_until_it_fits(count: int, fits: int) -> None:
    """Its text may even name a CUDA error: the context survives an allocation that failed."""
    work = Worker(fits=fits)
    assert run_isolated(work, range(count)) == [item * 10 for item in range(count)]
    assert max(size for size in work.sizes if size <= fits) > fits // 2


def test_an_input_too_large_for_memory_gets_an_error_of_its_own() -> None:
    (result,) = run_isolated(Worker(fits=0), [1])
    assert isinstance(result, InferenceFailed)
    assert result.status == 500
    assert "OutOfMemoryError" in result.message


def test_the_clients_message_names_the_error_without_its_text() -> None:
    def work(items: Sequence[int]) -> list[int]:
        raise KeyError("internals")

    (result,) = run_isolated(work, [1])
    assert isinstance(result, InferenceFailed)
    assert "KeyError" in result.message
    assert "internals" not in result.message


@pytest.mark.parametrize(("count", "most"), [(1, 1), (2, 3), (8, 15), (64, 17), (2048, 17)])
def test_a_batch_that_fails_everywhere_is_given_up(count: int, most: int, caplog: pytest.LogCaptureFixture) -> None:
    work = Worker(set(range(count)))
    assert outcomes(run_isolated(work, range(count))) == [None] * count
    assert len(work.sizes) <= most
    assert caplog.text.count("Traceback") == 1
    assert f"{count} of {count} inputs failed, after {len(work.sizes)} runs" in caplog.text


def test_a_batch_for_which_there_is_no_memory_at_all_is_given_up() -> None:
    work = Worker(fits=0)
    assert outcomes(run_isolated(work, range(64))) == [None] * 64
    assert len(work.sizes) == 6 + 9  # halved to one, and then more culprits than are looked for


def test_a_request_full_of_poison_costs_no_more_than_one_and_hurts_no_other() -> None:
    owners = [0] * 5 + [1] * 64 + [2] * 3
    work = Worker(set(range(5, 69)))
    answers = outcomes(run_isolated(work, range(72), owners))
    assert [answers[item] for item in (*range(5), *range(69, 72))] == [
        item * 10 for item in (*range(5), *range(69, 72))
    ]
    assert len(work.sizes) <= 1 + 2 * 7 + 2


def test_a_panic_is_isolated_as_well() -> None:
    """Those of libraries in Rust are no Exception."""

    class Panic(BaseException):
        pass

    def work(items: Sequence[int]) -> list[int]:
        if 3 in items:
            raise Panic
        return list(items)

    assert outcomes(run_isolated(work, range(6))) == [0, 1, 2, None, 4, 5]


def test_answers_that_are_too_few_are_nobody_s() -> None:
    assert outcomes(run_isolated(lambda items: [1] * min(2, len(items)), range(3))) == [1, 1, 1]
    assert outcomes(run_isolated(lambda items: [], range(3))) == [None] * 3


class Gpu:
    """torch.cuda's synchronize. raises: what the calls raise, one after the other; the last one again and again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, raises: Sequence[Exception | None]) -> None:
        self.raises, self.calls = list(raises), 0
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def synchronize(self) -> None:
        self.calls += 1
        error = self.raises.pop(0) if len(self.raises) > 1 else self.raises[0]
        if error is not None:
            raise error


ILLEGAL = RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize(
    "error",
    [
        ILLEGAL,
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        torch.OutOfMemoryError("CUDA out of memory"),
        KeyError("any other"),
    ],
)
def test_a_lost_gpu_ends_the_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, count: int, error: Exception
) -> None:
    Gpu(monkeypatch, [ILLEGAL])
    runs = []

    def work(items: Sequence[int]) -> list[int]:
        runs.append(len(items))
        raise error

    with pytest.raises(SystemExit) as ended:
        run_isolated(work, range(count))
    assert ended.value.code not in (0, None)
    assert runs == [count]
    assert "illegal memory access" in caplog.text


def test_a_lost_gpu_found_while_halving_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch, [None, None, ILLEGAL])
    with pytest.raises(SystemExit):
        run_isolated(Worker({0}), range(4))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Triton Error [CUDA]: out of memory",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to",
    ],
)
def test_memory_that_is_short_ends_no_worker(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """An allocation that failed loses no context, whatever its error is called."""
    Gpu(monkeypatch, [None])
    sizes: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 2:
            raise RuntimeError(text)
        return list(items)

    assert run_isolated(work, range(64)) == list(range(64))
    assert sizes == [64, 32, 16, 8, 4] + [2] * 32


def test_an_error_that_an_earlier_call_left_behind_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, [RuntimeError("CUDA error: out of memory"), None])
    assert outcomes(run_isolated(Worker({1}), range(2))) == [0, None]
    assert gpu.calls == 3


def test_without_a_gpu_nothing_is_synchronized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: pytest.fail("there is none"))
    (result,) = run_isolated(Worker({0}), [0])
    assert isinstance(result, InferenceFailed)
