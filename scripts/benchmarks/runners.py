"""An engine's name on the command line -> a loaded engine.

NAME-PRECISION: `eager` is the engine torch_eager, `compile` is torch.compile of transformers' own network, and every
other NAME is a file in handlers/engines.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from handlers import engines
from handlers.engines import DTYPES, Engine, EngineSpec

ALIASES = {"eager": "torch_eager"}
COMPILE = "compile"


def split_name(name: str) -> tuple[str, str]:
    """ "eager-fp16" -> ("eager", "fp16"). Raises ValueError where that is not its shape."""
    engine, _, precision = name.rpartition("-")
    if not engine or precision not in DTYPES:
        raise ValueError(f"{name!r}; wanted: ENGINE-PRECISION, the precision one of {', '.join(DTYPES)}")
    return engine, precision


def load(name: str, spec: EngineSpec) -> Engine:
    """The engine, in the name's precision instead of the spec's.

    Raises ValueError with the objection where it cannot run the spec here.
    """
    engine, precision = split_name(name)
    spec = dataclasses.replace(spec, precision=precision)
    if engine == COMPILE:
        return _load_compiled(spec)
    file = ALIASES.get(engine, engine)
    engines.choose(file, spec)  # raises the objection
    return engines.load(file, spec)


def _load_compiled(spec: EngineSpec) -> Engine:
    if spec.kind != "image-classifier":
        raise ValueError(f"engine compile cannot run a {spec.kind} yet; use eager")
    from transformers import ResNetForImageClassification

    network: Any = ResNetForImageClassification.from_pretrained(
        spec.model_dir, dtype=spec.dtype, local_files_only=True
    )
    network.eval().to(spec.device, memory_format=torch.channels_last)
    return Engine(Compiled(network), {"library": f"torch {torch.__version__}", "mode": Compiled.MODE})


class Compiled:
    """A network compiled anew for each batch size: dynamo would fall back to eager after eight of them."""

    MODE = "reduce-overhead"

    def __init__(self, network: Any) -> None:
        self.network, self.batch = network, 0
        self.compiled: Any = None

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) != self.batch:
            torch.compiler.reset()
            self.compiled = torch.compile(self.network, mode=self.MODE, dynamic=False)
            self.batch = len(images)
        torch.compiler.cudagraph_mark_step_begin()
        # The next call overwrites these logits, as GraphedByBucket's would be; both hand out a copy.
        logits: torch.Tensor = self.compiled(images).logits.clone()  # (N, classes)
        return logits
