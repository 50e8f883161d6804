"""No engine serves before it has given the fp32 outputs of a few samples, on the device that serves.

The first candidate that does is taken; those before it are dropped and named, with their figures. The result is kept
in the folder of plans: a model's other workers and later loads need not compare again, unless something that outputs
depend on has changed.
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
from handlers.engines import Engine, EngineSpec
from handlers.selection import kept, references

logger = logging.getLogger(__name__)

THE_REFERENCE_ITSELF = "nothing: it is the reference, transformers in fp32 on this CPU"


@dataclass
class Verdict:
    """What a comparison said.

    engine: the name of the one that serves. figures: its own, by name. against: where the reference came from.
    dropped: reasons. failed: whether the next load may find otherwise: an engine did not load, or memory was short.
    """

    engine: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    against: str = ""
    dropped: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    def details(self, when: str) -> dict[str, object]:
        """For the model's description."""
        checked: dict[str, object] = {"when": when, "against": self.against, **self.figures}
        return {"checked": checked, **({"dropped": self.dropped} if self.dropped else {})}


def load_checked(spec: EngineSpec, candidates: list[str]) -> tuple[str, Engine]:
    """Load the first of the candidates that passes. Raises ValueError with the figures if none does.

    What the only candidate raises as it loads is raised as it is.
    """
    if references.is_reference(candidates[0], spec):
        verdict = Verdict(candidates[0], against=THE_REFERENCE_ITSELF)
        return _named(engines.load(candidates[0], spec), verdict, "here")
    conditions = kept.conditions(spec, candidates)
    path = kept.path("checked", spec, conditions)
    if found := _load_known(path, spec, candidates):
        return found
    verdict, engine = compare(spec, candidates)
    if not verdict.failed:
        kept.keep(path, {"conditions": conditions, **dataclasses.asdict(verdict)})
    return _named(engine, verdict, "here")


def compare(spec: EngineSpec, candidates: list[str]) -> tuple[Verdict, Engine]:
    """Load candidates and compare them with the reference until one passes. Raises as `load_checked`."""
    reference = references.of(spec)
    verdict = Verdict(against=reference.source)
    for name in candidates:
        try:
            engine = engines.load(name, spec)
            figure = reference.compare(engine, spec)
        # A kernel that does not compile (Triton's own classes), memory that is short, a broken package: whatever it
        # is, the next candidate can serve.
        except Exception as failure:
            if len(candidates) == 1:
                raise
            verdict.dropped[name], verdict.failed = f"{type(failure).__name__}: {failure}", True
        else:
            if figure.passed:
                verdict.engine, verdict.figures = name, figure.as_dict()
                verdict.failed |= not figure.complete
                return verdict, engine
            verdict.dropped[name] = str(figure)
            del engine
        logger.warning("engine %s dropped: %s", name, verdict.dropped[name])
        if spec.device.type == "cuda":
            torch.cuda.empty_cache()
    raise ValueError(_refusal(spec, verdict))


def _refusal(spec: EngineSpec, verdict: Verdict) -> str:
    said = "; ".join(f"{name}: {why}" for name, why in verdict.dropped.items())
    return (
        f"no engine gives this model's outputs in {spec.precision} on {kept.device_name(spec.device)}, compared with "
        f"{verdict.against}. {said}. In model-config.yaml engine: auto tries every engine, and precision: fp32 is "
        "the most exact"
    )


def _load_known(path: Path, spec: EngineSpec, candidates: list[str]) -> tuple[str, Engine] | None:
    """By the verdict of an earlier comparison; None where there is none, or its engine does not load any more."""
    try:
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        verdict = Verdict(str(content["engine"]), dict(content["figures"]), str(content["against"]))
        verdict.dropped = {str(name): str(why) for name, why in content["dropped"].items()}
        if verdict.engine not in candidates:
            raise ValueError("it is of other engines")
        engine = engines.load(verdict.engine, spec)
    except Exception as error:  # as in compare
        logger.warning("comparing with fp32 again, for %s does not serve: %r", path, error)
        return None
    for name, why in verdict.dropped.items():
        logger.warning("engine %s dropped, as an earlier comparison has it: %s", name, why)
    return _named(engine, verdict, "earlier")


def _named(engine: Engine, verdict: Verdict, when: str) -> tuple[str, Engine]:
    return verdict.engine, dataclasses.replace(engine, details={**engine.details, **verdict.details(when)})
