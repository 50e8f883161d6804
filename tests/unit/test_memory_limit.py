"""A batch that memory did not hold is not tried so large again, until there may be more memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from handlers.serving.isolation import run_isolated
from handlers.serving.memory_limit import FIRST_WAIT_S, LONGEST_WAIT_S, MemoryLimit


class Gpu:
    """Holds `fits` inputs at once, and notes how many were tried."""

    def __init__(self, fits: int) -> None:
        self.fits, self.sizes = fits, list[int]()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.sizes.append(len(items))
        if len(items) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [10 * item for item in items]


class Worker:
    """Runs batches one after the other on a GPU, at a time that the test sets."""

    def __init__(self, fits: int) -> None:
        self.gpu, self.now, self.description = Gpu(fits), 0.0, dict[str, Any]()
        self.memory = MemoryLimit(self.description, "images", lambda: self.now)

    def sizes(self, count: int) -> list[int]:
        """Run a batch; returns the sizes that were tried."""
        self.gpu.sizes = []
        assert run_isolated(self.gpu, range(count), memory=self.memory) == [10 * item for item in range(count)]
        return self.gpu.sizes


def test_the_next_batch_is_not_tried_too_large_again(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(fits=20)
    assert worker.sizes(64) == [64, 32, 16, 16, 16, 16]
    assert worker.sizes(64) == [16] * 4
    assert worker.sizes(8) == [8]
    assert caplog.text.count("memory is short for a batch of 64 images") == 1


def test_the_description_tells_the_limit_and_forgets_it() -> None:
    worker = Worker(fits=20)
    assert worker.sizes(8) == [8]
    assert "memory" not in worker.description
    worker.sizes(64)
    assert worker.description["memory"]["largestBatch"] == 16
    assert worker.description["memory"]["unit"] == "images"
    worker.now, worker.gpu.fits = FIRST_WAIT_S, 64
    worker.sizes(64)
    worker.sizes(64)
    assert "memory" not in worker.description


def test_it_grows_again_when_others_have_given_memory_back() -> None:
    worker = Worker(fits=8)
    worker.sizes(64)
    worker.gpu.fits, worker.now = 64, FIRST_WAIT_S - 1
    assert worker.sizes(64) == [8] * 8
    worker.now = FIRST_WAIT_S
    assert worker.sizes(64) == [16, 32, 16]
    assert worker.sizes(64) == [64]
    assert worker.memory.limit is None


def test_each_try_that_fails_makes_the_wait_longer() -> None:
    worker, tries = Worker(fits=8), 0
    worker.sizes(64)
    for _ in range(4 * 3600):
        worker.now += 1
        tries += 16 in worker.sizes(64)
    assert 4 * 3600 / LONGEST_WAIT_S <= tries <= 4 * 3600 / LONGEST_WAIT_S + 5


def test_sizes_are_weighed() -> None:
    """Of texts a batch's tokens take the memory, not its texts."""
    description: dict[str, Any] = {}
    memory = MemoryLimit(description, "tokens", lambda: 0.0)
    lengths, tried = [100, 100, 10, 10, 10, 10], list[int]()

    def work(items: Sequence[int]) -> list[int]:
        tried.append(sum(items))
        if sum(items) > 130:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(items)

    assert run_isolated(work, lengths, sizes=lengths, memory=memory) == lengths
    assert tried == [240, 100, 120, 20]
    tried.clear()
    assert run_isolated(work, lengths, sizes=lengths, memory=memory) == lengths
    assert tried == [100, 120, 20]


def test_an_input_that_never_fits_fails_alone_and_others_go_on() -> None:
    memory = MemoryLimit({}, "tokens", lambda: 0.0)

    def work(items: Sequence[int]) -> list[int]:
        if sum(items) > 130:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(items)

    lengths = [10, 500, 20, 30]
    answers = run_isolated(work, lengths, sizes=lengths, memory=memory)
    assert [answer if isinstance(answer, int) else None for answer in answers] == [10, None, 20, 30]
