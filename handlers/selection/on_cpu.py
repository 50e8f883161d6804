"""Choosing engine and precision on a CPU by measurement: which is the fastest differs from CPU to CPU.

bf16 halves the bytes, and where a CPU multiplies it natively it may take half the time of fp32, or one and a half
times as long. So each engine in each precision that the archive's parity figures allow is loaded, compared with fp32
(as in checked.py), and timed with one sample alone and with a few together. PyTorch's engines differ
less than precisions do: of those only the first that passes is timed, in each precision.

Candidates are loaded one after the other, so that no more than two networks lie in memory. What was measured is kept
in the folder of plans. A model's other workers and later loads need not measure again, unless something that the
times depend on has changed.
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
from handlers.engines import Engine, EngineSpec, plans
from handlers.selection import checked, kept, references
from handlers.selection.candidates import able

FEW = 4  # images that are timed together; of more, each takes as long
FEW_TOKENS = 256  # of the texts that are timed together
LEAST_RUNS, MOST_RUNS, ENOUGH_S = 3, 30, 0.3  # of one batch; after so many seconds the least runs are enough
NOT_PYTORCH = ("onnxruntime",)

logger = logging.getLogger(__name__)

Candidate = tuple[str, EngineSpec]


@dataclass
class Measurement:
    """What was measured; candidates by names such as "fused bf16".

    chosen: engine and precision. milliseconds: by candidate, then what ran: the least of several runs, for what else
    the machine does can only add. figures: of those that passed, their distance from fp32. against: where the fp32
    reference came from. dropped: reasons. failed: whether the next load may find otherwise.
    """

    chosen: tuple[str, str] = ("", "")
    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    against: str = ""
    dropped: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    def slowness(self, name: str) -> float:
        """The product of its times: half the time of one counts as much as half the time of several together."""
        return math.prod(self.milliseconds[name].values())

    def details(self, when: str) -> dict[str, object]:
        """For the model's description; `checked` as every engine's."""
        checked = {"when": when, "against": self.against, **self.figures[_joined(self.chosen)]}
        measured = {"when": when, "milliseconds": self.milliseconds, "figures": self.figures}
        return {"checked": checked, "measured": measured, **_dropped(self.dropped)}


def candidates(asked: str, specs: Sequence[EngineSpec]) -> list[Candidate]:
    """The engines that can run one of the specs here, best first. Raises ValueError where there is none."""
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


def load_fastest(among: Sequence[Candidate]) -> tuple[str, EngineSpec, Engine]:
    """Load the candidates, measure them or know them measured, and keep the fastest.

    Raises ValueError where none loads and passes.
    """
    conditions = kept.conditions(among[0][1], [_name(*one) for one in among])
    conditions["threads"] = torch.get_num_threads()
    path = kept.path("cpu", among[0][1], conditions)
    with contextlib.ExitStack() as held:
        _lock(among[0][1].plan_cache, held)
        if found := _load_known(path, among):
            return found
        measurement, engine = measure(among)
        if not measurement.failed:
            kept.keep(path, {"conditions": conditions, **dataclasses.asdict(measurement)})
    return _described(measurement, among, engine, "here")


def load_for_packaging(among: Sequence[Candidate]) -> tuple[str, EngineSpec, Engine]:
    """The first candidate, whose outputs packaging compares; a later one, if a library other than PyTorch is wrong.

    That library would not serve, and shall not keep an archive from being packaged that PyTorch runs.
    """
    dropped = {}
    for name, spec in among:
        if name not in NOT_PYTORCH:
            engine = engines.load(name, spec)
            break
        try:
            _, engine = checked.compare(spec, [name])
            break
        except Exception as error:  # as in measure
            dropped[_name(name, spec)] = f"{type(error).__name__}: {error}"
            logger.warning("engine %s dropped: %s", name, error)
    return name, spec, dataclasses.replace(engine, details={**engine.details, **_dropped(dropped)})


def _dropped(reasons: Mapping[str, str]) -> dict[str, object]:
    return {"dropped": dict(reasons)} if reasons else {}


def measure(among: Sequence[Candidate]) -> tuple[Measurement, Engine]:
    """All candidates compared and timed, and the fastest loaded. Raises as `load_fastest`."""
    reference = references.of(among[0][1])
    found, best = Measurement(against=reference.source), None
    for name, spec in among:
        if name not in NOT_PYTORCH and _has_passed(found, spec.precision):
            continue
        label, engine = _name(name, spec), _try(name, spec, reference, found)
        if engine is None:
            logger.warning("engine %s dropped: %s", label, found.dropped[label])
        elif best is None or found.slowness(label) < found.slowness(_joined(found.chosen)):
            best, found.chosen = engine, (name, spec.precision)
        del engine
    if best is None:
        raise ValueError(f"no engine loads and gives this model's outputs here, compared with fp32: {found.dropped}")
    logger.info("measured on %s: %s", kept.device_name(among[0][1].device), found.milliseconds)
    return found, best


def least_ms(run: Callable[[], object]) -> float:
    """The shortest of several calls, after one to warm up."""
    run()
    times: list[float] = []
    while len(times) < LEAST_RUNS or (len(times) < MOST_RUNS and sum(times) < ENOUGH_S):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return round(min(times) * 1e3, 3)


def _try(name: str, spec: EngineSpec, reference: references.Reference, found: Measurement) -> Engine | None:
    """Load, compare and time one candidate, and tell `found`; None if it does not load or misses parity."""
    label = _name(name, spec)
    try:
        engine = engines.load(name, spec)
        figure = reference.compare(engine, spec)
        times = {ran: least_ms(run) for ran, run in _runs(engine, spec, reference)} if figure.passed else {}
    except Exception as failure:  # as in checked.compare: whatever it is, another candidate can serve
        found.dropped[label], found.failed = f"{type(failure).__name__}: {failure}", True
        return None
    if not figure.passed:
        found.dropped[label] = str(figure)
        return None
    found.failed |= not figure.complete
    found.figures[label], found.milliseconds[label] = figure.as_dict(), times
    return engine


def _has_passed(found: Measurement, precision: str) -> bool:
    passed = (label.split() for label in found.figures)
    return any(name not in NOT_PYTORCH and its_precision == precision for name, its_precision in passed)


def _runs(
    engine: Engine, spec: EngineSpec, reference: references.Reference
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is timed, with words for it: one sample, and a few together."""
    if isinstance(reference, references.Images):
        for count in sorted({1, min(FEW, spec.batch_size)}):
            images = reference.batch(spec, count)
            yield _counted(count, "image"), lambda images=images: engine.run(images)  # type: ignore[misc]
        return
    short = _short([len(ids) for ids in reference.ids])
    for places in ([short[len(short) // 2]], short):
        batch = reference.batch(places, spec.device)
        said = f"{_counted(len(places), 'text')}, {_counted(batch.tokens, 'token')}"
        yield said, lambda batch=batch: engine.run(batch)  # type: ignore[misc]


def _short(lengths: Sequence[int]) -> list[int]:
    """Places of the shortest texts, of FEW_TOKENS together, or of one."""
    places = sorted(range(len(lengths)), key=lambda place: lengths[place])
    totals = accumulate(lengths[place] for place in places)
    return places[: max(1, sum(total <= FEW_TOKENS for total in totals))]


def _load_known(path: Path, among: Sequence[Candidate]) -> tuple[str, EngineSpec, Engine] | None:
    """By an earlier measurement; None where there is none, or its engine does not load any more."""
    try:
        if not path.is_file():
            return None
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = [one.name for one in dataclasses.fields(Measurement)]
        found = Measurement(**{name: content[name] for name in names})
        found.chosen = (str(found.chosen[0]), str(found.chosen[1]))
        name, spec = _candidate(found, among)
        engine = engines.load(name, spec)
        return _described(found, among, engine, "earlier")
    except Exception as error:  # as in measure
        logger.warning("measuring again, for %s does not serve: %r", path, error)
        return None


def _described(
    found: Measurement, among: Sequence[Candidate], engine: Engine, when: str
) -> tuple[str, EngineSpec, Engine]:
    name, spec = _candidate(found, among)
    return name, spec, dataclasses.replace(engine, details={**engine.details, **found.details(when)})


def _candidate(found: Measurement, among: Sequence[Candidate]) -> Candidate:
    """The chosen one. Raises ValueError where it is not among the candidates."""
    named = {_name(*one): one for one in among}
    if _joined(found.chosen) not in named:
        raise ValueError("it is of other engines")
    return named[_joined(found.chosen)]


def _lock(folder: Path, held: contextlib.ExitStack) -> None:
    """Wait for whoever measures on this CPU: two that did it at once would measure each other."""
    try:
        held.enter_context(plans.locked(folder / "cpu"))
    except OSError as error:  # a folder that cannot be written to, say, or that knows no locks
        logger.warning("workers that load at once may measure each other, for there is no lock: %s", error)


def _name(name: str, spec: EngineSpec) -> str:
    return _joined((name, spec.precision))


def _joined(chosen: tuple[str, str]) -> str:
    return " ".join(chosen)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
