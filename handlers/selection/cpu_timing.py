"""Choose engine and precision on a CPU by timing: which is the fastest differs from CPU to CPU.

bf16 halves the bytes. A CPU that multiplies it natively may take half the time of fp32, or one and a half times as
long. So each engine is loaded in each precision that the archive's parity results allow, compared with fp32 (as in
verification.py), and timed with one sample and with a few together. PyTorch's engines differ less than precisions
do: only the first of them that passes is timed in each precision.

Candidates are loaded one after the other, so that at most two networks lie in memory. The times are kept in the
folder of plans: a model's other workers and later loads measure again only if something that they depend on has
changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from handlers import engines
from handlers.engines import EngineSpec, LoadedEngine, plans
from handlers.selection import compared_here, progress, references, results_cache, verification
from handlers.selection.candidates import able

FEW = 4  # images that are timed together; in larger batches each image takes as long
FEW_TOKENS = 256  # tokens of the texts that are timed together
# Runs of one batch: at most MOST_RUNS; once they took ENOUGH_S seconds, LEAST_RUNS are enough.
LEAST_RUNS, MOST_RUNS, ENOUGH_S = 3, 30, 0.3
NOT_PYTORCH = ("onnxruntime",)

logger = logging.getLogger(__name__)

Candidate = tuple[str, EngineSpec]  # an engine's name, and the spec in its precision


@dataclass
class Measurement:
    """What was measured. Candidates have labels such as "fused bf16".

    Args:
        chosen: engine and precision of the fastest.
        milliseconds: by candidate, then by what ran: the least of several runs, because other work on the machine
            can only add time.
        deviations: by candidate that passed: its deviation from fp32, as `Deviation.as_dict` returns it.
        against: where the fp32 outputs come from.
        dropped: why a candidate does not serve, by label.
        failed: True if an engine failed to load, or memory was short. That may be temporary, so the measurement is
            not kept.
    """

    chosen: tuple[str, str] = ("", "")
    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)
    deviations: dict[str, Any] = field(default_factory=dict)
    against: str = ""
    dropped: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    def slowness(self, label: str) -> float:
        """Return the product of a candidate's times: to halve one time counts as much as to halve another."""
        return math.prod(self.milliseconds[label].values())

    def details(self, when: str) -> dict[str, object]:
        """Return what the model's description shows. when: "here", or "earlier" if the result was kept."""
        checked = {"when": when, "against": self.against, **self.deviations[_joined(self.chosen)]}
        measured = {"when": when, "milliseconds": self.milliseconds, "figures": self.deviations}
        return {"checked": checked, "measured": measured, **_dropped(self.dropped)}


def candidates(asked: str, specs: Sequence[EngineSpec]) -> list[Candidate]:
    """Return the engines that can run one of the specs here, best first.

    Args:
        asked: an engine's name, or "auto".
        specs: the model in each precision, the preferred one first.

    Raises:
        ValueError: if there is none; says why for the first precision.
    """
    found: list[Candidate] = []
    problems = []
    for spec in specs:
        try:
            found += [(name, spec) for name in able(asked, spec)]
        except ValueError as problem:
            problems.append(problem)
    if not found:
        raise problems[0]
    return found


def is_choice(among: Sequence[Candidate]) -> bool:
    """Whether there is anything to measure: several precisions, or engines that are not all PyTorch's."""
    others = any(name in NOT_PYTORCH for name, _ in among)
    return len({spec.precision for _, spec in among}) > 1 or (others and len(among) > 1)


def load_fastest(among: Sequence[Candidate]) -> tuple[str, EngineSpec, LoadedEngine]:
    """Load the candidates, measure them unless an earlier measurement exists, and keep the fastest.

    Returns: the engine's name, the spec in its precision, and the engine.

    Raises:
        ValueError: if no candidate loads and gives fp32's outputs.
    """
    conditions = results_cache.conditions(among[0][1], [_label(*one) for one in among])
    conditions["threads"] = torch.get_num_threads()
    path = results_cache.path("cpu", among[0][1], conditions)
    with contextlib.ExitStack() as stack:
        _lock(among[0][1].plan_cache, stack)
        if found := _load_kept(path, among):
            return found
        measurement, engine = measure(among)
        if not measurement.failed:
            content = {"conditions": conditions, **dataclasses.asdict(measurement)}
            results_cache.write(path, among[0][1].device, content)
    return _described(measurement, among, engine, "here")


def load_for_packaging(among: Sequence[Candidate]) -> tuple[str, EngineSpec, LoadedEngine]:
    """Load the first candidate, whose outputs packaging compares.

    If a library other than PyTorch gives wrong outputs, load a later candidate: that library would not serve, and
    must not keep an archive from being packaged that PyTorch can run.
    """
    dropped = {}
    for name, spec in among:
        if name not in NOT_PYTORCH:
            engine = engines.load(name, spec)
            break
        try:
            _, engine = verification.compare(spec, [name])
            break
        except Exception as error:  # as in measure
            dropped[_label(name, spec)] = f"{type(error).__name__}: {error}"
            logger.warning("engine %s dropped: %s", name, error)
    return name, spec, dataclasses.replace(engine, details={**engine.details, **_dropped(dropped)})


def _dropped(reasons: Mapping[str, str]) -> dict[str, object]:
    return {"dropped": dict(reasons)} if reasons else {}


def measure(among: Sequence[Candidate]) -> tuple[Measurement, LoadedEngine]:
    """Compare and time all candidates. Returns the measurement, and the fastest. Raises as `load_fastest`."""
    reference = references.of(among[0][1])
    found, best = Measurement(against=reference.source), None
    for number, (name, spec) in enumerate(among, 1):
        if name not in NOT_PYTORCH and _has_passed(found, spec.precision):
            continue
        label = _label(name, spec)
        progress.tell(f"measuring engine {label}", number, len(among))
        engine = _try(name, spec, reference, found)
        if engine is None:
            logger.warning("engine %s dropped: %s", label, found.dropped[label])
        elif best is None or found.slowness(label) < found.slowness(_joined(found.chosen)):
            best, found.chosen = engine, (name, spec.precision)
        del engine
    if best is None:
        raise ValueError(f"no engine loads and gives this model's outputs here, compared with fp32: {found.dropped}")
    logger.info("measured on %s: %s", results_cache.device_name(among[0][1].device), found.milliseconds)
    return found, best


def least_ms(run: Callable[[], object]) -> float:
    """Return the shortest time of several calls, after one to warm up."""
    run()
    times: list[float] = []
    while len(times) < LEAST_RUNS or (len(times) < MOST_RUNS and sum(times) < ENOUGH_S):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return round(min(times) * 1e3, 3)


def _try(name: str, spec: EngineSpec, reference: references.Reference, found: Measurement) -> LoadedEngine | None:
    """Load, compare and time one candidate, and add the result to `found`. None if it does not load or pass."""
    label = _label(name, spec)
    try:
        engine = engines.load(name, spec)
        deviation = reference.compare(engine, spec)
        times = {ran: least_ms(run) for ran, run in _runs(engine, spec, reference)} if deviation.passed else {}
    except Exception as failure:  # as in verification.compare: whatever it is, another candidate can serve
        found.dropped[label], found.failed = f"{type(failure).__name__}: {failure}", True
        return None
    if not deviation.passed:
        found.dropped[label] = str(deviation)
        return None
    found.failed |= not deviation.complete
    found.deviations[label], found.milliseconds[label] = deviation.as_dict(), times
    return engine


def _has_passed(found: Measurement, precision: str) -> bool:
    """Whether one of PyTorch's engines has passed in this precision."""
    passed = (label.split() for label in found.deviations)
    return any(name not in NOT_PYTORCH and its_precision == precision for name, its_precision in passed)


def _runs(
    engine: LoadedEngine, spec: EngineSpec, reference: references.Reference
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is timed, each with a description: one sample, and a few together."""
    if isinstance(reference, references.Images):
        for count in sorted({1, min(FEW, spec.batch_size)}):
            images = reference.batch(spec, count)
            yield _counted(count, "image"), lambda images=images: engine.run(images)  # type: ignore[misc]
        return
    short = _shortest([len(ids) for ids in reference.ids])
    for indices in ([short[len(short) // 2]], short):
        batch = reference.batch(indices, spec.device)
        described = f"{_counted(len(indices), 'text')}, {_counted(batch.tokens, 'token')}"
        yield described, lambda batch=batch: engine.run(batch)  # type: ignore[misc]


def _shortest(lengths: Sequence[int]) -> list[int]:
    """Return indices of the shortest texts, of at most FEW_TOKENS together; at least one."""
    indices = sorted(range(len(lengths)), key=lambda index: lengths[index])
    totals = accumulate(lengths[index] for index in indices)
    return indices[: max(1, sum(total <= FEW_TOKENS for total in totals))]


def _load_kept(path: Path, among: Sequence[Candidate]) -> tuple[str, EngineSpec, LoadedEngine] | None:
    """Load the engine of a kept measurement. None if there is none, or its engine no longer loads or passes."""
    try:
        if not path.is_file():
            return None
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = [one.name for one in dataclasses.fields(Measurement)]
        found = Measurement(**{name: content[name] for name in names})
        found.chosen = (str(found.chosen[0]), str(found.chosen[1]))
        name, spec = _candidate(found, among)
        engine = engines.load(name, spec)
        compared_here.refuse_wrong(content.get("keptBy"), {name: engine}, spec)
        return _described(found, among, engine, "earlier")
    except Exception as error:  # as in measure
        logger.warning("measuring again, because %s cannot be used: %r", path, error)
        return None


def _described(
    found: Measurement, among: Sequence[Candidate], engine: LoadedEngine, when: str
) -> tuple[str, EngineSpec, LoadedEngine]:
    """Return the chosen engine's name and spec, and the engine with the measurement in its details."""
    name, spec = _candidate(found, among)
    return name, spec, dataclasses.replace(engine, details={**engine.details, **found.details(when)})


def _candidate(found: Measurement, among: Sequence[Candidate]) -> Candidate:
    """Return the chosen candidate. Raises ValueError if it is not among the candidates."""
    by_label = {_label(*one): one for one in among}
    if _joined(found.chosen) not in by_label:
        raise ValueError("it names other engines")
    return by_label[_joined(found.chosen)]


def _lock(folder: Path, stack: contextlib.ExitStack) -> None:
    """Wait while another process measures on this CPU: two at once would disturb each other's times."""
    try:
        stack.enter_context(plans.locked(folder / "cpu"))
    except OSError as error:  # the folder cannot be written to, or its file system has no locks
        logger.warning("there is no lock, so workers that load at once may disturb each other's times: %s", error)


def _label(name: str, spec: EngineSpec) -> str:
    return _joined((name, spec.precision))


def _joined(chosen: tuple[str, str]) -> str:
    return " ".join(chosen)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
