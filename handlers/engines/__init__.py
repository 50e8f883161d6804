"""How a network runs. An engine takes a spec and returns a callable; a new one is a new file in this folder.

Each engine offers (a module without KINDS is a part of others):

- `KINDS`: the kinds of model it runs, of "image-classifier" and "text-encoder".
- `RANK`: int; the order in which "auto" looks at them, highest first.
- `objection(spec) -> str | None`: why it cannot run `spec` here, or None.
- `load(spec) -> Engine`.
- where it runs not every model of its kinds, `unfit(spec) -> str | None`: why it would run this one on no machine.
  Packaging asks that; `objection` says it as well.
- where loading may take minutes, `ready(spec) -> bool`: whether it will not. "auto" leaves out what is not ready.
- where another engine must not serve in its place, `refusal(spec) -> str | None`: why. "auto" raises it.
- beside `ready`, `unready(spec) -> str | None`: why it is not, where that shall stand in the log and the details.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from handlers.engines.plans import default_cache
from handlers.settings import Pooling

# What goes in and out of an engine; with fp8, what its linear layers do not multiply stays in fp16.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float16}


@dataclass(frozen=True)
class EngineSpec:
    """A model as it lies in an unpacked archive, and how it is to run.

    kind: "image-classifier" or "text-encoder". task: of a text encoder, one of settings.TEXT_TASKS; of an image
    network "embeddings" for pooled features, else "".
    model_dir: holds config.json and model.safetensors. precision: a key of DTYPES.
    image_size: side of the square images, in pixels; 0 if the network's inputs are not squares of one size.
    batch_size: images that run at once, at most.
    buckets: batch sizes that a plan is built for, ascending. on_mismatch: "rebuild" or "refuse" a plan that was built
    for another machine. plan_cache: folder of the plans built here, and of what was measured.
    max_tokens, token_budget, pooling: of a text encoder, as in settings.TextSettings.
    """

    kind: str
    model_dir: Path
    device: torch.device
    precision: str
    task: str = ""
    image_size: int = 224
    batch_size: int = 1
    buckets: tuple[int, ...] = (1, 8, 64)
    on_mismatch: str = "rebuild"
    plan_cache: Path = field(default_factory=default_cache)
    max_tokens: int = 512
    token_budget: int = 0
    pooling: Pooling = field(default_factory=Pooling)

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
    pads: of a text encoder, whether it pads a batch's inputs to the longest, and so pays for more tokens than came.
    token_budget: of a text encoder, tokens that it runs fastest at once, padding counted where it pads.
    """

    run: Callable[[Any], torch.Tensor]
    details: dict[str, object]
    pads: bool = True
    token_budget: int = 16_384


def names(kind: str | None = None) -> list[str]:
    """The engines in this folder (that run `kind`), best first."""
    modules = {item.name: import_module(f"{__name__}.{item.name}") for item in pkgutil.iter_modules(__path__)}
    known = {name: module for name, module in modules.items() if hasattr(module, "KINDS")}
    fitting = [name for name, module in known.items() if kind is None or kind in module.KINDS]
    return sorted(fitting, key=lambda name: -modules[name].RANK)


def objection(name: str, spec: EngineSpec) -> str | None:
    """Why this engine cannot run `spec` here, or None."""
    why: str | None = _excluded(name, spec) or module(name).objection(spec)
    return why


def unfit(name: str, spec: EngineSpec) -> str | None:
    """Why this engine would run `spec` on no machine, or None."""
    engine = module(name)
    why: str | None = engine.unfit(spec) if hasattr(engine, "unfit") else None
    return _excluded(name, spec) or why


def _excluded(name: str, spec: EngineSpec) -> str | None:
    """Why this engine runs no such image network, or None."""
    if spec.kind != "image-classifier" or name == "torch_eager":
        return None
    if not spec.image_size:
        return "it runs square images of one size, and the checkpoint's preprocessing makes other inputs"
    if spec.task == "embeddings" and name != "tensorrt":
        return "it runs classifiers, and the network is an image encoder"
    return None


def load(name: str, spec: EngineSpec) -> Engine:
    """Load `spec` with the engine `name`."""
    engine: Engine = module(name).load(spec)
    return engine


def is_ready(name: str, spec: EngineSpec) -> bool:
    """Whether loading this engine will not take minutes."""
    engine = module(name)
    return not hasattr(engine, "ready") or bool(engine.ready(spec))


def module(name: str) -> ModuleType:
    """The file of an engine."""
    return import_module(f"{__name__}.{name}")
