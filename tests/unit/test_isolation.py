"""One poisonous input fails alone; a lost GPU ends the worker."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handlers.errors import InferenceFailed
from handlers.isolation import run_isolated


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


@given(st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_only_poison_fails_and_order_stays(case: tuple[int, set[int]]) -> None:
    count, poison = case
    results = run_isolated(Worker(poison), range(count))
    assert outcomes(results) == [None if item in poison else item * 10 for item in range(count)]


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


@pytest.mark.parametrize("count", [1, 5])
def test_a_lost_gpu_ends_the_worker(count: int, caplog: pytest.LogCaptureFixture) -> None:
    runs = []

    def work(items: Sequence[int]) -> list[int]:
        runs.append(len(items))
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(SystemExit) as ended:
        run_isolated(work, range(count))
    assert ended.value.code not in (0, None)
    assert runs == [count]
    assert "illegal memory access" in caplog.text


def test_a_lost_gpu_found_while_halving_ends_the_worker() -> None:
    def work(items: Sequence[int]) -> list[int]:
        raise RuntimeError("CUDA error: device-side assert" if len(items) == 1 else "something else")

    with pytest.raises(SystemExit):
        run_isolated(work, range(4))
