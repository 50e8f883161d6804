"""How a network runs. An engine takes a spec and returns a callable; a new one is a new file in this folder.

Each engine offers (a module without KINDS is a part of others):

- `KINDS`: the kinds of model it runs, of "image-classifier" and "text-encoder".
- `RANK`: int; "auto" takes the highest rank that does not object.
- `objection(spec) -> str | None`: why it cannot run `spec` here, or None.
- `load(spec) -> Engine`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class EngineSpec:
    """A model as it lies in an unpacked archive, and how it is to run.

    kind: "image-classifier" or "text-encoder". task: of a text encoder, one of settings.TEXT_TASKS.
    model_dir: holds config.json and model.safetensors. precision: a key of DTYPES.
    """

    kind: str
    model_dir: Path
    device: torch.device
    precision: str
    task: str = ""

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]


@dataclass(frozen=True)
class Engine:
    """A loaded network.

    run: for an image classifier, (N, 3, S, S) normalised, in the spec's dtype -> logits (N, classes);
        for a text encoder, a TokenBatch -> by task: token vectors (T, hidden) for embeddings, logits (N, labels)
        for sequence-classification, (T, labels) for token-classification, (M, vocabulary) at the batch's
        `selected` positions for fill-mask. Outputs are on the device, in the spec's dtype.
    details: what a person should know about how it runs, for the log and the model's description.
    """

    run: Callable[[Any], torch.Tensor]
    details: dict[str, object]


def names(kind: str | None = None) -> list[str]:
    """The engines in this folder (that run `kind`), best first."""
    modules = {item.name: import_module(f"{__name__}.{item.name}") for item in pkgutil.iter_modules(__path__)}
    known = {name: module for name, module in modules.items() if hasattr(module, "KINDS")}
    fitting = [name for name, module in known.items() if kind is None or kind in module.KINDS]
    return sorted(fitting, key=lambda name: -modules[name].RANK)


def choose(asked: str, spec: EngineSpec) -> str:
    """The engine's name for `asked`; "auto" is the best one without an objection.

    Raises ValueError where the asked engine does not exist or cannot run the spec here.
    """
    known = names(spec.kind)
    if asked == "auto":
        return next(name for name in known if _module(name).objection(spec) is None)
    if asked not in known:
        raise ValueError(f"engine {asked!r} does not run a {spec.kind}; known: auto, {', '.join(known)}")
    objection = _module(asked).objection(spec)
    if objection:
        raise ValueError(f"engine {asked} cannot run here: {objection}; engine: auto takes the best one that can")
    return asked


def load(name: str, spec: EngineSpec) -> Engine:
    """Load `spec` with the engine `name`."""
    engine: Engine = _module(name).load(spec)
    return engine


def _module(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name}")
