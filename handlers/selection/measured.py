"""Choosing engines by measurement: on this GPU, at the batch sizes to be served, after a check against fp32.

Candidates that do not load or miss parity are dropped and named; of the others, each batch size gets the fastest. The
smallest and the largest batch of every bucket are timed: an engine that pads takes as long for both, another one does
not, and 33 images may run elsewhere than 64.

What was measured is kept in the folder of plans. A model's other workers and later loads need not measure again,
unless something that the times depend on has changed.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import logging
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from handlers.engines import Engine, EngineSpec, load, plans
from handlers.engines.graphs import sizes_up_to
from handlers.selection import figures, kept, references
from handlers.selection.figures import Figure

WARM_UPS, RUNS = 5, 15

logger = logging.getLogger(__name__)


@dataclass
class Table:
    """What was measured.

    milliseconds: by batch size, then engine: median of RUNS, by CUDA events. relative_error: NaN for outputs that are
    not finite. against: where the fp32 reference came from. dropped: reasons. failed: whether one of them is no
    lasting one: an engine did not load, which it may do the next time, or memory was short.
    """

    milliseconds: dict[int, dict[str, float]] = field(default_factory=dict)
    relative_error: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    against: str = ""
    failed: bool = False

    @property
    def fastest(self) -> list[str]:
        """The engine of each batch size: of one image first, of the largest batch that was timed last."""
        return [self._fastest_of(count) for count in range(1, max(self.milliseconds, default=0) + 1)]

    def _fastest_of(self, count: int) -> str:
        """Of the fastest engines of the timed sizes on both sides, the one with less time in between."""
        sizes = sorted(self.milliseconds)
        high = sizes[bisect.bisect_left(sizes, count)]
        low = count if count == high else sizes[bisect.bisect_left(sizes, count) - 1]
        share = 0.0 if low == high else (count - low) / (high - low)

        def time(name: str) -> float:
            least, most = self._time(low, name), self._time(high, name)
            return least + (most - least) * share if math.isfinite(most) else math.inf

        best = {min(self.milliseconds[size], key=lambda name: self._time(size, name)) for size in (low, high)}
        return min(sorted(best), key=time)

    def _time(self, size: int, name: str) -> float:
        return self.milliseconds[size].get(name, math.inf)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Table:
        """Of `as_dict`. Raises KeyError, TypeError, AttributeError or ValueError where it is something else."""
        times = {
            int(size): {str(name): float(value) for name, value in of_size.items()}
            for size, of_size in content["milliseconds"].items()
        }
        errors = {
            str(name): math.nan if value == figures.NOT_FINITE else float(value)
            for name, value in content["relativeError"].items()
        }
        dropped = {str(name): str(why) for name, why in content["dropped"].items()}
        return cls(times, errors, dropped, str(content["against"]))

    def as_dict(self) -> dict[str, object]:
        """For JSON, which has no NaN."""
        return {
            "servedBy": _ranges(self.fastest),
            "milliseconds": {
                str(size): {name: round(value, 4) for name, value in times.items()}
                for size, times in sorted(self.milliseconds.items())
            },
            "against": self.against,
            "relativeError": {name: figures.json_number(value, 2) for name, value in self.relative_error.items()},
            "dropped": dict(self.dropped),
        }


def _ranges(names: list[str]) -> dict[str, str]:
    """Engines by batch sizes: {"1": "cudnn", "2-33": "tensorrt", ...}."""
    found = {}
    for name, places in groupby(range(len(names)), key=lambda place: names[place]):
        sizes = [place + 1 for place in places]
        found[f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]}"] = name
    return found


def load_fastest(spec: EngineSpec, candidates: list[str]) -> tuple[str, Engine]:
    """Load the candidates, measure them or know them measured, and keep the fastest for each batch size.

    Sizes go up to the spec's. Returns the names joined by "+", and one engine that runs each batch where it is
    fastest. Raises ValueError where none passes parity.
    """
    conditions = kept.conditions(spec, candidates)
    path = kept.path("measured", spec, conditions)
    with contextlib.ExitStack() as held:
        _lock(spec, held)
        if found := _load_known(path, spec, candidates):
            return found
        table, engines = measure(spec, candidates)
        if not table.failed:
            kept.keep(path, {"conditions": conditions, **table.as_dict()})
    return combine(engines, table, "here")


def _lock(spec: EngineSpec, held: contextlib.ExitStack) -> None:
    """Wait for whoever measures on this GPU: two that did it at once would measure each other."""
    try:
        held.enter_context(plans.locked(spec.plan_cache / f"gpu-{_gpu_id(spec.device)}"))
    except OSError as error:  # a home that cannot be written to, say, or that knows no locks
        logger.warning("workers that load at once may measure each other, for there is no lock: %s", error)


def _load_known(path: Path, spec: EngineSpec, candidates: list[str]) -> tuple[str, Engine] | None:
    """By the table of an earlier measurement; None where there is none, or what it names does not load any more."""
    try:
        if not path.is_file():
            return None
        table = Table.from_dict(json.loads(path.read_text(encoding="utf-8")))
        if sorted(table.milliseconds) != sizes_up_to(spec.batch_size) or not set(table.fastest) <= set(candidates):
            raise ValueError("it is of other batch sizes or engines")
        engines = {name: load(name, spec) for name in sorted(set(table.fastest))}
    except Exception as error:  # see load_passing
        logger.warning("measuring again, for %s does not serve: %r", path, error)
        return None
    return combine(engines, table, "earlier")


def measure(spec: EngineSpec, candidates: list[str]) -> tuple[Table, dict[str, Engine]]:
    """The table, and the candidates that loaded and passed parity. Raises ValueError where there is none."""
    reference = references.of(spec)
    if not isinstance(reference, references.Images):
        raise TypeError(f"engines of a {spec.kind} are not chosen by measurement")
    table = Table(against=reference.source)
    engines = load_passing(spec, candidates, reference, table)
    for size in reversed(sizes_up_to(spec.batch_size)):
        _time(size, reference.batch(spec, size), engines, table)
    if not table.milliseconds:
        raise ValueError(f"there is too little memory for one image: {table.dropped}")
    logger.info("engines measured on %s: %s", kept.device_name(spec.device), table.as_dict())
    return table, engines


def _time(size: int, images: torch.Tensor, engines: Mapping[str, Engine], table: Table) -> None:
    """Fill the table's row of one batch size, with the engines for which memory suffices."""
    times = {}
    for name, engine in engines.items():
        try:
            times[name] = milliseconds(engine.run, images)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            logger.warning("engine %s has too little memory for batches of %d", name, size)
            table.failed = True
    if times:
        table.milliseconds[size] = times


def _gpu_id(device: torch.device) -> str:
    """One that all processes know the GPU by."""
    if device.type != "cuda":
        return str(device)
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", device.index))


def load_passing(
    spec: EngineSpec, candidates: list[str], reference: references.Images, table: Table
) -> dict[str, Engine]:
    """The candidates that load and give the reference's logits in batches of every size that is timed.

    The others go into table.dropped. Raises ValueError where none is left.
    """
    engines = {}
    for name in candidates:
        try:
            engine = load(name, spec)
            figure = _compare(engine, spec, reference)
        # A torn plan, a call that this GPU's libraries lack, a kernel that does not compile (Triton's own classes), a
        # folder that cannot be written to, a broken package: whatever it is, the others can serve.
        except Exception as failure:
            table.dropped[name], table.failed = f"{type(failure).__name__}: {failure}", True
        else:
            table.relative_error[name] = figure.value
            table.failed |= not figure.complete
            if figure.passed:
                engines[name] = engine
            else:
                table.dropped[name] = str(figure)
        if name in table.dropped:
            logger.warning("engine %s dropped: %s", name, table.dropped[name])
    if not engines:
        raise ValueError(f"no engine loads and passes parity in {spec.precision}: {table.dropped}")
    return engines


def _compare(engine: Engine, spec: EngineSpec, reference: references.Images) -> Figure:
    """Batches of every size: each may run other kernels."""
    return references.worst_that_fit(
        lambda size: reference.figure(engine, spec, size), sizes_up_to(spec.batch_size)[::-1]
    )


def combine(engines: Mapping[str, Engine], table: Table, when: str) -> tuple[str, Engine]:
    """One engine out of those that are fastest somewhere; the others are let go. when: "here" or "earlier"."""
    serving = [engines[name].run for name in table.fastest]
    details = {name: engines[name].details for name in sorted(set(table.fastest))}

    def run(images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) -> (N, classes); more than the largest batch that was timed is cut into such."""
        if len(images) > len(serving):
            return torch.cat([run(part) for part in images.split(len(serving))])
        return serving[len(images) - 1](images)

    return "+".join(details), Engine(run, {"measured": {"when": when, **table.as_dict()}, "engines": details})


def milliseconds(run: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> float:
    """Median time of one call, by CUDA events."""
    for _ in range(WARM_UPS):
        run(images)
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(RUNS)]
    for start, end in pairs:
        start.record()
        run(images)
        end.record()
    torch.cuda.synchronize(images.device)
    return float(statistics.median(start.elapsed_time(end) for start, end in pairs))
