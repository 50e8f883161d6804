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

import dataclasses
import logging
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from handlers.engines.plans import default_cache
from handlers.settings import Pooling

logger = logging.getLogger(__name__)

# What goes in and out of an engine; with fp8, what its linear layers do not multiply stays in fp16.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float16}


@dataclass(frozen=True)
class EngineSpec:
    """A model as it lies in an unpacked archive, and how it is to run.

    kind: "image-classifier" or "text-encoder". task: of a text encoder, one of settings.TEXT_TASKS.
    model_dir: holds config.json and model.safetensors. precision: a key of DTYPES.
    image_size: side of the square images, in pixels. batch_size: images that run at once, at most.
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


def choose(asked: str, spec: EngineSpec) -> list[str]:
    """The engines' names for `asked`; of several, the fastest is to be measured ("auto" for a CNN on a GPU).

    Raises ValueError where the asked engine does not exist or cannot run the spec here.
    """
    candidates = able(asked, spec)
    return candidates if _by_measurement(spec) else candidates[:1]


def able(asked: str, spec: EngineSpec) -> list[str]:
    """The asked engine, or for "auto" all that can run the spec here, best first. Raises as `choose`."""
    known = names(spec.kind)
    if asked == "auto":
        return _able(known, spec)
    if asked not in known:
        raise ValueError(f"engine {asked!r} does not run a {spec.kind}; known: auto, {', '.join(known)}")
    if why := objection(asked, spec):
        raise ValueError(f"engine {asked} cannot run here: {why}; engine: auto takes the best one that can")
    return [asked]


def _able(known: list[str], spec: EngineSpec) -> list[str]:
    runnable = [name for name in known if objection(name, spec) is None]
    for name in runnable:
        if hasattr(_module(name), "refusal") and (why := _module(name).refusal(spec)):
            raise ValueError(f"engine {name} refuses: {why}")
    ready = [name for name in runnable if _ready(name, spec)]
    if not ready:
        why = "; ".join(f"{name}: {objection(name, spec) or 'not ready'}" for name in known)
        raise ValueError(f"no engine can run this here. {why}")
    return ready


def _by_measurement(spec: EngineSpec) -> bool:
    return spec.kind == "image-classifier" and spec.device.type == "cuda" and spec.precision != "fp32"


def objection(name: str, spec: EngineSpec) -> str | None:
    """Why this engine cannot run `spec` here, or None."""
    why: str | None = _module(name).objection(spec)
    return why


def unfit(name: str, spec: EngineSpec) -> str | None:
    """Why this engine would run `spec` on no machine, or None."""
    module = _module(name)
    why: str | None = module.unfit(spec) if hasattr(module, "unfit") else None
    return why


def load_chosen(asked: str, spec: EngineSpec, check: bool = True) -> tuple[str, Engine]:
    """Choose, load and compare with fp32; the name says what serves ("cudnn+tensorrt" where batch sizes differ).

    check: False leaves the comparison of an engine that is not chosen by measurement to the caller.
    Raises ValueError.
    """
    from handlers.engines.checked import load_checked
    from handlers.engines.measured import load_fastest

    candidates = able(asked, spec)
    if len(candidates) > 1 and _by_measurement(spec):
        name, engine = load_fastest(spec, candidates)
    elif check:
        name, engine = load_checked(spec, candidates)
    else:
        name, engine = candidates[0], load(candidates[0], spec)
    return name, _with_left_out(asked, [spec], engine)


def load_best(asked: str, specs: Sequence[EngineSpec], check: bool = True) -> tuple[str, EngineSpec, Engine]:
    """As `load_chosen`, for a model that may run in several precisions, the preferred one first.

    specs: differ in precision alone. On a CPU the fastest of engines and precisions is measured; a GPU gets the first
    precision. Returns the spec that serves, too.
    """
    from handlers.engines import on_cpu

    if specs[0].device.type != "cpu":
        return _load_first(asked, specs[0], check)
    candidates = on_cpu.candidates(asked, specs)
    if not on_cpu.is_choice(candidates):
        return _load_first(asked, candidates[0][1], check)
    if not check:
        return on_cpu.load_for_packaging(candidates)
    name, spec, engine = on_cpu.load_fastest(candidates)
    return name, spec, _with_left_out(asked, specs, engine)


def _load_first(asked: str, spec: EngineSpec, check: bool) -> tuple[str, EngineSpec, Engine]:
    name, engine = load_chosen(asked, spec, check)
    return name, spec, engine


def _with_left_out(asked: str, specs: Sequence[EngineSpec], engine: Engine) -> Engine:
    """The engine, its details with what "auto" left out."""
    left_out = {name: why for spec in specs for name, why in _left_out(spec).items()} if asked == "auto" else {}
    return dataclasses.replace(engine, details={**engine.details, "leftOut": left_out}) if left_out else engine


def _left_out(spec: EngineSpec) -> dict[str, str]:
    """The engines that could run, are not ready, and say why; each with a warning."""
    reasons = {}
    for name in names(spec.kind):
        module = _module(name)
        why = module.unready(spec) if hasattr(module, "unready") and objection(name, spec) is None else None
        if why:
            logger.warning("engine %s left out: %s", name, why)
            reasons[name] = str(why)
    return reasons


def load(name: str, spec: EngineSpec) -> Engine:
    """Load `spec` with the engine `name`."""
    engine: Engine = _module(name).load(spec)
    return engine


def _ready(name: str, spec: EngineSpec) -> bool:
    module = _module(name)
    return not hasattr(module, "ready") or bool(module.ready(spec))


def _module(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name}")
