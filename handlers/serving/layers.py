"""Finds the layer at which an input's values stop being finite, for the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from handlers.protocol import internal_errors

logger = logging.getLogger(__name__)

EVERY_S = 600.0
Layers = tuple[Callable[[Any], torch.Tensor], nn.Module]


class LayerSearch:
    """Runs an input whose output was not finite once more, layer by layer; at most once in EVERY_S.

    Args:
        layers: how the network runs so that its modules are called one by one, and the network; None if it cannot.
        clock: seconds.
    """

    def __init__(self, layers: Layers | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.layers, self.clock = layers, clock
        self.next_at = float("-inf")

    def explain(self, batch: Callable[[], Any]) -> None:
        """Log where the values of an input stop being finite. Never raises, unless the process is to end.

        Args:
            batch: makes what the engine takes, of the input alone.
        """
        if self.layers is None or self.clock() < self.next_at:
            return
        self.next_at = self.clock() + EVERY_S
        try:
            logger.error("%s", first_not_finite(*self.layers, batch()))
        except BaseException as error:
            internal_errors.log_failure(error, "looking for the layer whose output is not finite")


@torch.inference_mode()
def first_not_finite(run: Callable[[Any], torch.Tensor], network: nn.Module, batch: Any) -> str:
    """Return a sentence on the first module whose output is not finite, and on the last one before it.

    The innermost modules end first, so that the first one found is the smallest.
    """
    seen: list[str] = []
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and all(bool(tensor.isfinite().all()) for tensor in _tensors(output)):
                seen.append(name)
            elif not found:
                types = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in _tensors(output)}))
                found.append(f"{name} ({type(module).__name__}, {types})")

        return hook

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            hooks.enter_context(module.register_forward_hook(look(name or "the whole network")))
        finite = bool(run(batch).isfinite().all())
    if found:
        return f"the first layer whose output is not finite is {found[0]}; the last finite one is {_last(seen)}"
    if finite:
        return "the same input alone, run once more, gives finite outputs: suspect the GPU, or the batch"
    return f"all layers that can be looked at give finite outputs, up to {_last(seen)}; what follows them does not"


def _last(seen: list[str]) -> str:
    return seen[-1] if seen else "none"


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The floating-point tensors in a module's output: a tensor, or tensors in tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)
