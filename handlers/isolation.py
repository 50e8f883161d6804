"""A model that fails on one input must not fail its neighbours, nor stay up on a GPU that is lost."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from handlers.errors import InferenceFailed

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


def run_isolated(work: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> list[R | InferenceFailed]:
    """`work(items)`, one result an item; a batch that fails is halved until only the culprits have failed.

    Out of memory is cured the same way: halves that fit are answered. A CUDA error that poisons the process's
    context ends the process instead (TorchServe would keep the broken worker), so that TorchServe starts a
    fresh worker.
    """
    if not items:
        return []
    try:
        return list(work(items))
    except Exception as error:
        _exit_if_gpu_lost(error)
        logger.exception("the model failed on a batch of %d", len(items))
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        if len(items) == 1:
            return [InferenceFailed(f"the model failed on this input: {type(error).__name__}")]
    middle = len(items) // 2
    return run_isolated(work, items[:middle]) + run_isolated(work, items[middle:])


def _exit_if_gpu_lost(error: Exception) -> None:
    if "CUDA error" in str(error) and not isinstance(error, torch.OutOfMemoryError):
        logger.critical("the GPU's context is lost, this worker ends: %s", error)
        sys.exit(70)
