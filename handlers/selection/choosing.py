"""Choose and load the engine that serves: the one asked for, or the best one that gives fp32's outputs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from handlers import engines
from handlers.engines import EngineSpec, LoadedEngine
from handlers.selection import cpu_timing, gpu_timing, verification
from handlers.selection.candidates import able, by_measurement

logger = logging.getLogger(__name__)


def load_chosen(asked: str, spec: EngineSpec, check: bool = True) -> tuple[str, LoadedEngine]:
    """Choose an engine, load it and compare it with fp32.

    Args:
        asked: an engine's name, or "auto".
        spec: the model, in one precision.
        check: False if the caller compares. An engine that is chosen by timing is compared in any case.

    Returns: the name of what serves ("cudnn+tensorrt" if that differs by batch size), and the engine.

    Raises:
        ValueError: if no engine can run the spec here, or none gives fp32's outputs.
    """
    candidates = able(asked, spec)
    if len(candidates) > 1 and by_measurement(spec):
        name, engine = gpu_timing.load_fastest(spec, candidates)
    elif check:
        name, engine = verification.load_verified(spec, candidates)
    else:
        name, engine = candidates[0], engines.load(candidates[0], spec)
    return name, _with_left_out(asked, [spec], engine)


def load_best(asked: str, specs: Sequence[EngineSpec], check: bool = True) -> tuple[str, EngineSpec, LoadedEngine]:
    """Choose an engine and a precision, as `load_chosen` does for one precision.

    Args:
        asked: an engine's name, or "auto".
        specs: the model in each precision that it may run in, the preferred one first. On a CPU the fastest engine
            and precision are measured; a GPU gets the first precision.
        check: as in `load_chosen`.

    Returns: the name of what serves, its spec, and the engine. Raises as `load_chosen`.
    """
    if specs[0].device.type != "cpu":
        return _load_in_one_precision(asked, specs[0], check)
    candidates = cpu_timing.candidates(asked, specs)
    if not cpu_timing.is_choice(candidates):
        return _load_in_one_precision(asked, candidates[0][1], check)
    if not check:
        return cpu_timing.load_for_packaging(candidates)
    name, spec, engine = cpu_timing.load_fastest(candidates)
    return name, spec, _with_left_out(asked, specs, engine)


def _load_in_one_precision(asked: str, spec: EngineSpec, check: bool) -> tuple[str, EngineSpec, LoadedEngine]:
    name, engine = load_chosen(asked, spec, check)
    return name, spec, engine


def _with_left_out(asked: str, specs: Sequence[EngineSpec], engine: LoadedEngine) -> LoadedEngine:
    """Add the engines that "auto" left out to the details."""
    left_out = {name: why for spec in specs for name, why in _left_out(spec).items()} if asked == "auto" else {}
    return dataclasses.replace(engine, details={**engine.details, "leftOut": left_out}) if left_out else engine


def _left_out(spec: EngineSpec) -> dict[str, str]:
    """Return the engines that can run the spec and that "auto" skips, with the reasons. Logs a warning for each."""
    reasons = {}
    for name in engines.names(spec.kind):
        engine = engines.get(name)
        why = engine.why_auto_skips(spec) if engine.why_not_here(spec) is None else None
        if why:
            logger.warning("engine %s left out: %s", name, why)
            reasons[name] = why
    return reasons
