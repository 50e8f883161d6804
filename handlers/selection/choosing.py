"""Which engine serves: the one asked for, or the best that can, compared with fp32 first."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from handlers import engines
from handlers.engines import Engine, EngineSpec
from handlers.selection import on_cpu

logger = logging.getLogger(__name__)


def choose(asked: str, spec: EngineSpec) -> list[str]:
    """The engines' names for `asked`; of several, the fastest is to be measured ("auto" for a CNN on a GPU).

    Raises ValueError where the asked engine does not exist or cannot run the spec here.
    """
    candidates = able(asked, spec)
    return candidates if _by_measurement(spec) else candidates[:1]


def able(asked: str, spec: EngineSpec) -> list[str]:
    """The asked engine, or for "auto" all that can run the spec here, best first. Raises as `choose`."""
    known = engines.names(spec.kind)
    if asked == "auto":
        return _able(known, spec)
    if asked not in known:
        raise ValueError(f"engine {asked!r} does not run a {spec.kind}; known: auto, {', '.join(known)}")
    if why := engines.objection(asked, spec):
        raise ValueError(f"engine {asked} cannot run here: {why}; engine: auto takes the best one that can")
    return [asked]


def _able(known: list[str], spec: EngineSpec) -> list[str]:
    runnable = [name for name in known if engines.objection(name, spec) is None]
    for name in runnable:
        if hasattr(engines.module(name), "refusal") and (why := engines.module(name).refusal(spec)):
            raise ValueError(f"engine {name} refuses: {why}")
    ready = [name for name in runnable if engines.is_ready(name, spec)]
    if not ready:
        why = "; ".join(f"{name}: {engines.objection(name, spec) or 'not ready'}" for name in known)
        raise ValueError(f"no engine can run this here. {why}")
    return ready


def _by_measurement(spec: EngineSpec) -> bool:
    return spec.kind == "image-classifier" and spec.device.type == "cuda" and spec.precision != "fp32"


def load_chosen(asked: str, spec: EngineSpec, check: bool = True) -> tuple[str, Engine]:
    """Choose, load and compare with fp32; the name says what serves ("cudnn+tensorrt" where batch sizes differ).

    check: False leaves the comparison of an engine that is not chosen by measurement to the caller.
    Raises ValueError.
    """
    from handlers.selection.checked import load_checked
    from handlers.selection.measured import load_fastest

    candidates = able(asked, spec)
    if len(candidates) > 1 and _by_measurement(spec):
        name, engine = load_fastest(spec, candidates)
    elif check:
        name, engine = load_checked(spec, candidates)
    else:
        name, engine = candidates[0], engines.load(candidates[0], spec)
    return name, _with_left_out(asked, [spec], engine)


def load_best(asked: str, specs: Sequence[EngineSpec], check: bool = True) -> tuple[str, EngineSpec, Engine]:
    """As `load_chosen`, for a model that may run in several precisions, the preferred one first.

    specs: differ in precision alone. On a CPU the fastest of engines and precisions is measured; a GPU gets the first
    precision. Returns the spec that serves, too.
    """

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
    for name in engines.names(spec.kind):
        module = engines.module(name)
        why = module.unready(spec) if hasattr(module, "unready") and engines.objection(name, spec) is None else None
        if why:
            logger.warning("engine %s left out: %s", name, why)
            reasons[name] = str(why)
    return reasons
