"""A model that fails on one input must not fail its neighbours, nor stay up on a GPU that is lost."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

import torch

from handlers.protocol.errors import InferenceFailed
from handlers.serving.memory_limit import MemoryLimit

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# Requests of a batch that are found by running parts of it again. If more of them fail, it is the model that fails.
MOST_CULPRITS = 8
# Messages of PyTorch, its allocator for CPUs, Triton, TensorRT, cuBLAS and cuDNN when memory is short.
SHORT = re.compile(r"out ?of ?memory|not enough memory|can't allocate memory|alloc_failed", re.IGNORECASE)


def run_isolated(
    work: Callable[[Sequence[T]], Sequence[R]],
    items: Sequence[T],
    owners: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
    memory: MemoryLimit | None = None,
) -> list[R | InferenceFailed]:
    """Return `work(items)`, one result per item; a batch that fails is halved until only the culprits have failed.

    One culprit among N items costs about 2 log2(N) more runs. If more than MOST_CULPRITS requests of a batch fail,
    the batch is given up: what is left fails without being tried alone. If memory is short, parts that fit are run.

    Args:
        work: runs the model on some items; returns one result per item.
        owners: the index of each item's request, ascending; by default each item is a request of its own. A request
            fails as a whole, so its items behind the first culprit are not run.
        sizes: how much memory each item takes, in any unit; by default one each.
        memory: what is known of it from earlier batches; by default nothing.

    Raises SystemExit if the GPU is lost, see exit_if_gpu_lost.
    """
    if not items:
        return []
    owners = range(len(items)) if owners is None else owners
    sizes = [1] * len(items) if sizes is None else sizes
    return _Batch(work, items, owners, sizes, memory or MemoryLimit({}, "inputs")).answers()


def exit_if_gpu_lost() -> None:
    """End the process if nothing can run on its GPU any more; TorchServe starts another one.

    TorchServe itself would keep the broken worker. Call this after an exception: its message does not show whether
    the GPU is lost, for "CUDA error" also begins the message of a failed allocation, and a lost context has many
    names. After a loss, for example by an illegal address, every later call raises. An error that an earlier call
    left behind is raised only once.
    """
    if not torch.cuda.is_initialized() or _synchronizes():
        return
    try:
        torch.cuda.synchronize()
    except Exception as error:
        logger.critical("the GPU's context is lost, this worker ends: %s", error, exc_info=True)
        sys.exit(70)


def _synchronizes() -> bool:
    try:
        torch.cuda.synchronize()
    except Exception:
        return False
    return True


class _Batch(Generic[T, R]):
    """The search for the culprits in one batch. A part of the batch is a range of indices."""

    def __init__(
        self,
        work: Callable[[Sequence[T]], Sequence[R]],
        items: Sequence[T],
        owners: Sequence[int],
        sizes: Sequence[int],
        memory: MemoryLimit,
    ) -> None:
        self.work, self.items, self.owners, self.memory = work, items, owners, memory
        self.ends = list(accumulate(sizes, initial=0))  # the sizes of all items before each index
        self.results: list[R | InferenceFailed] = [InferenceFailed("not run")] * len(items)
        self.failing: deque[range] = deque()  # parts with a culprit each, no two with one of the same request
        self.culprits = self.runs = 0
        self.errors: Counter[str] = Counter()

    def answers(self) -> list[R | InferenceFailed]:
        """One result per item."""
        self._run(range(len(self.items)), len(self.items))
        while self.failing and not self._hopeless:
            part = self.failing.popleft()
            self._run(part, (len(part) + 1) // 2)
        for part in self.failing:
            self._give_up(part)
        if self.errors:
            counts = ", ".join(f"{count} {name}" for name, count in self.errors.items())
            failed = sum(isinstance(result, InferenceFailed) for result in self.results)
            logger.error("%d of %d inputs failed, after %d runs: %s", failed, len(self.items), self.runs, counts)
        return self.results

    @property
    def _hopeless(self) -> bool:
        return self.culprits + len(self.failing) > MOST_CULPRITS

    def _run(self, part: range, size: int) -> None:
        """Run `part` in pieces of at most `size` items; one that fails is a culprit, or is kept for halving."""
        while part and not self._hopeless:
            piece = self._first_piece(part, min(size, self._fitting(part)))
            error, short = self._attempt(piece)
            if short and len(piece) > 1:
                continue
            part = part[len(piece) :]
            if error:
                self._keep(piece, error)
                part = part[bisect_right(self.owners, self.owners[piece[-1]], part.start, part.stop) - part.start :]
        self._give_up(part)

    def _size(self, part: range) -> int:
        return self.ends[part.stop] - self.ends[part.start]

    def _fitting(self, part: range) -> int:
        """How many of the first items memory holds at once, as far as is known; one at least."""
        most = self.ends[part.start] + self.memory.allowed(self._size(part))
        return max(1, bisect_right(self.ends, most, part.start, part.stop + 1) - 1 - part.start)

    def _first_piece(self, part: range, size: int) -> range:
        """Whole requests of at most `size` items together, or `size` items of a request that has more."""
        if len(part) <= size:
            return part
        whole = bisect_left(self.owners, self.owners[part[size]], part.start, part.stop) - part.start
        return part[: whole or size]

    def _attempt(self, piece: range) -> tuple[str, bool]:
        """Run one piece and keep its results; returns the class of the error ("" for none), and if memory was short.

        The error itself would keep alive the tensors that its traceback's frames hold.
        """
        self.runs += 1
        items = self.items[piece.start : piece.stop]
        try:
            self.results[piece.start : piece.stop] = _one_each(self.work(items), items)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            if not self.errors:
                logger.exception("the model failed on a batch of %d", len(items))
            exit_if_gpu_lost()
            name, short = type(error).__name__, _is_of_memory(error)
        else:
            self.memory.fitted(self._size(piece))
            return "", False
        self.errors[name] += 1
        if short:
            self.memory.failed(self._size(piece))
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
        return name, short

    def _keep(self, piece: range, error: str) -> None:
        if len(piece) > 1:
            self.failing.append(piece)
        else:
            self.culprits += 1
            self.results[piece.start] = InferenceFailed(f"the model failed on this input: {error}")

    def _give_up(self, part: range) -> None:
        for index in part:
            self.results[index] = InferenceFailed(
                f"the model failed on more than {MOST_CULPRITS} requests of a batch; this one was not tried alone"
            )


def _one_each(results: Sequence[R], items: Sequence[T]) -> list[R]:
    if len(results) != len(items):
        raise ValueError(f"{len(results)} results came for {len(items)} inputs")
    return list(results)


def _is_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or SHORT.search(str(error)) is not None
