"""torch.compile of a network, for peers."""

from __future__ import annotations

from typing import Any

import torch

from handlers.engines import LoadedEngine


class Compiled:
    """A network compiled anew for each input shape: dynamo would fall back to eager after eight of them.

    Outputs lie in a CUDA graph's memory, and the next call overwrites them.
    """

    MODE = "reduce-overhead"

    def __init__(self, network: Any) -> None:
        self.network = network
        self.shape: torch.Size | None = None
        self.compiled: Any = None

    @torch.no_grad()
    def __call__(self, **inputs: torch.Tensor) -> Any:
        shape = next(iter(inputs.values())).shape
        if shape != self.shape:
            torch.compiler.reset()
            self.compiled = torch.compile(self.network, mode=self.MODE, dynamic=False)
            self.shape = shape
        torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(**inputs)


def engine(run: Any) -> LoadedEngine:
    """With what a person should know of it."""
    return LoadedEngine(run, {"library": f"torch {torch.__version__}", "mode": Compiled.MODE})
