"""Which engines can run a model on this machine."""

from __future__ import annotations

from handlers import engines
from handlers.engines import EngineSpec


def choose(asked: str, spec: EngineSpec) -> list[str]:
    """Return the engine to load, or several if the fastest of them has to be measured.

    Args:
        asked: an engine's name, or "auto".
        spec: the model.

    Raises:
        ValueError: if the engine does not exist, or none can run the spec here.
    """
    candidates = able(asked, spec)
    return candidates if by_measurement(spec) else candidates[:1]


def able(asked: str, spec: EngineSpec) -> list[str]:
    """Return the asked engine, or for "auto" all that can run the spec here, best first. Raises as `choose`."""
    known = engines.names(spec.kind)
    if asked == "auto":
        return _able(known, spec)
    if asked not in known:
        raise ValueError(f"engine {asked!r} does not run a {spec.kind}; known: auto, {', '.join(known)}")
    if why := engines.get(asked).why_not_here(spec):
        raise ValueError(f"engine {asked} cannot run here: {why}; engine: auto takes the best one that can")
    return [asked]


def _able(known: list[str], spec: EngineSpec) -> list[str]:
    why_not = {name: engines.get(name).why_not_here(spec) for name in known}
    runnable = [name for name in known if why_not[name] is None]
    for name in runnable:
        if why := engines.get(name).why_auto_refuses(spec):
            raise ValueError(f"engine {name} refuses: {why}")
    ready = [name for name in runnable if engines.get(name).why_auto_skips(spec) is None]
    if not ready:
        reasons = "; ".join(f"{name}: {why_not[name] or 'not ready'}" for name in known)
        raise ValueError(f"no engine can run this here. {reasons}")
    return ready


def by_measurement(spec: EngineSpec) -> bool:
    """Whether the fastest of several engines is found by timing them: for a CNN on a GPU, below fp32."""
    return spec.kind == "image-classifier" and spec.device.type == "cuda" and spec.precision != "fp32"
