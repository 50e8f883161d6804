"""Load the first candidate that gives fp32's outputs for a few samples, on the device that serves.

Candidates before it are dropped, and named with their deviations. The result is kept in the folder of plans: a
model's other workers and later loads compare again only if something that outputs depend on has changed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from handlers import engines
from handlers.engines import EngineSpec, LoadedEngine
from handlers.selection import compared_here, references, results_cache

logger = logging.getLogger(__name__)

THE_REFERENCE_ITSELF = "nothing: it is the reference, transformers in fp32 on this CPU"


@dataclass
class Verdict:
    """The result of a comparison.

    Args:
        engine: the name of the engine that serves.
        deviation: its deviation from fp32, as `Deviation.as_dict` returns it.
        against: where the fp32 outputs come from.
        dropped: why each other engine does not serve, by name.
        failed: True if an engine failed to load, or memory was short. That may be temporary, so the verdict is not
            kept.
    """

    engine: str = ""
    deviation: dict[str, Any] = field(default_factory=dict)
    against: str = ""
    dropped: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    def details(self, when: str) -> dict[str, object]:
        """Return what the model's description shows. when: "here", or "earlier" if the result was kept."""
        checked: dict[str, object] = {"when": when, "against": self.against, **self.deviation}
        return {"checked": checked, **({"dropped": self.dropped} if self.dropped else {})}


def load_verified(spec: EngineSpec, candidates: list[str]) -> tuple[str, LoadedEngine]:
    """Load the first candidate that passes.

    Returns: its name, and the engine.

    Raises:
        ValueError: with the deviations, if none passes.
        Exception: whatever the only candidate raises while it loads.
    """
    if references.is_reference(candidates[0], spec):
        verdict = Verdict(candidates[0], against=THE_REFERENCE_ITSELF)
        return _described(engines.load(candidates[0], spec), verdict, "here")
    conditions = results_cache.conditions(spec, candidates)
    path = results_cache.path("checked", spec, conditions)
    if found := _load_kept(path, spec, candidates):
        return found
    verdict, engine = compare(spec, candidates)
    if not verdict.failed:
        results_cache.write(path, spec.device, {"conditions": conditions, **dataclasses.asdict(verdict)})
    return _described(engine, verdict, "here")


def compare(spec: EngineSpec, candidates: list[str]) -> tuple[Verdict, LoadedEngine]:
    """Load candidates and compare them with the reference until one passes. Raises as `load_verified`."""
    reference = references.of(spec)
    verdict = Verdict(against=reference.source)
    for name in candidates:
        try:
            engine = engines.load(name, spec)
            deviation = reference.compare(engine, spec)
        # A kernel that does not compile (Triton has its own exceptions), too little memory, a broken package:
        # whatever it is, the next candidate can serve.
        except Exception as failure:
            if len(candidates) == 1:
                raise
            verdict.dropped[name], verdict.failed = f"{type(failure).__name__}: {failure}", True
        else:
            if deviation.passed:
                verdict.engine, verdict.deviation = name, deviation.as_dict()
                verdict.failed |= not deviation.complete
                return verdict, engine
            verdict.dropped[name] = str(deviation)
            del engine
        logger.warning("engine %s dropped: %s", name, verdict.dropped[name])
        if spec.device.type == "cuda":
            torch.cuda.empty_cache()
    raise ValueError(_none_passed(spec, verdict))


def _none_passed(spec: EngineSpec, verdict: Verdict) -> str:
    reasons = "; ".join(f"{name}: {why}" for name, why in verdict.dropped.items())
    return (
        f"no engine gives this model's outputs in {spec.precision} on {results_cache.device_name(spec.device)}, "
        f"compared with {verdict.against}. {reasons}. In model-config.yaml engine: auto tries every engine, and "
        "precision: fp32 is the most exact"
    )


def _load_kept(path: Path, spec: EngineSpec, candidates: list[str]) -> tuple[str, LoadedEngine] | None:
    """Load the engine of a kept verdict. None if there is no verdict, or its engine no longer loads or passes."""
    try:
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        verdict = Verdict(str(content["engine"]), dict(content["deviation"]), str(content["against"]))
        verdict.dropped = {str(name): str(why) for name, why in content["dropped"].items()}
        if verdict.engine not in candidates:
            raise ValueError("it names other engines")
        engine = engines.load(verdict.engine, spec)
        compared_here.refuse_wrong(content.get("keptBy"), {verdict.engine: engine}, spec)
    except Exception as error:  # as in compare
        logger.warning("comparing with fp32 again, because %s cannot be used: %r", path, error)
        return None
    for name, why in verdict.dropped.items():
        logger.warning("engine %s dropped by an earlier comparison: %s", name, why)
    return _described(engine, verdict, "earlier")


def _described(engine: LoadedEngine, verdict: Verdict, when: str) -> tuple[str, LoadedEngine]:
    """Return the engine's name, and the engine with the verdict in its details."""
    return verdict.engine, dataclasses.replace(engine, details={**engine.details, **verdict.details(when)})
