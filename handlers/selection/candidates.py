"""Which engines can run a model on this machine."""

from __future__ import annotations

from handlers import engines
from handlers.engines import EngineSpec


def choose(asked: str, spec: EngineSpec) -> list[str]:
    """The engines' names for `asked`; of several, the fastest is to be measured ("auto" for a CNN on a GPU).

    Raises ValueError where the asked engine does not exist or cannot run the spec here.
    """
    candidates = able(asked, spec)
    return candidates if by_measurement(spec) else candidates[:1]


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


def by_measurement(spec: EngineSpec) -> bool:
    """Whether the fastest of several engines is found by timing them: a CNN on a GPU, below fp32."""
    return spec.kind == "image-classifier" and spec.device.type == "cuda" and spec.precision != "fp32"
