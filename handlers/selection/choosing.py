"""Which engine serves: the one asked for, or the best that can, compared with fp32 first."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from handlers import engines
from handlers.engines import Engine, EngineSpec
from handlers.selection import checked, measured, on_cpu
from handlers.selection.candidates import able, by_measurement

logger = logging.getLogger(__name__)


def load_chosen(asked: str, spec: EngineSpec, check: bool = True) -> tuple[str, Engine]:
    """Choose, load and compare with fp32; the name says what serves ("cudnn+tensorrt" where batch sizes differ).

    check: False leaves the comparison of an engine that is not chosen by measurement to the caller.
    Raises ValueError.
    """
    candidates = able(asked, spec)
    if len(candidates) > 1 and by_measurement(spec):
        name, engine = measured.load_fastest(spec, candidates)
    elif check:
        name, engine = checked.load_checked(spec, candidates)
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
