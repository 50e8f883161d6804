"""Choose engines for each batch size on a GPU, by timing those that give fp32's outputs.

Candidates that do not load, or whose outputs are too far from fp32, are dropped and named. The smallest and the
largest batch of every bucket are timed: an engine that pads takes as long for 33 images as for 64, another does not.

The table of times is kept in the folder of plans: a model's other workers and later loads measure again only if
something that the times depend on has changed.
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

from handlers import engines
from handlers.engines import EngineSpec, LoadedEngine, plans
from handlers.engines.graphs import sizes_up_to
from handlers.engines.image_inputs import ImageInputs, device_of
from handlers.selection import compared_here, deviations, progress, references, results_cache
from handlers.selection.deviations import Deviation

WARM_UPS, RUNS = 5, 15
RELATIVE_ERROR, LEAST_COSINE = "relativeError", "leastCosine"  # names in the model's description

logger = logging.getLogger(__name__)


@dataclass
class Table:
    """What was measured.

    Args:
        milliseconds: by batch size, then by engine: median of RUNS calls, by CUDA events.
        deviation: by engine, against fp32, as deviations.Deviation has it. NaN if outputs are not finite.
        dropped: why an engine does not serve, by name.
        against: where the fp32 outputs come from.
        cosine: True if deviations are cosines (of embeddings), instead of relative errors.
        failed: True if an engine failed to load, or memory was short. That may be temporary, so the table is not
            kept.
    """

    milliseconds: dict[int, dict[str, float]] = field(default_factory=dict)
    deviation: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    against: str = ""
    cosine: bool = False
    failed: bool = False

    @property
    def fastest(self) -> list[str]:
        """The fastest engine for batches of 1, 2, 3, ... images, up to the largest that was timed."""
        return [self._fastest_of(count) for count in range(1, max(self.milliseconds, default=0) + 1)]

    def _fastest_of(self, count: int) -> str:
        """Return the fastest for `count` images, of the engines that are fastest at the timed sizes around it.

        Times between two timed sizes are interpolated.
        """
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
        """The inverse of `as_dict`. Raises KeyError, TypeError, AttributeError or ValueError for other content."""
        times = {
            int(size): {str(name): float(value) for name, value in of_size.items()}
            for size, of_size in content["milliseconds"].items()
        }
        cosine = LEAST_COSINE in content
        found = {
            str(name): math.nan if value == deviations.NOT_FINITE else float(value)
            for name, value in content[LEAST_COSINE if cosine else RELATIVE_ERROR].items()
        }
        dropped = {str(name): str(why) for name, why in content["dropped"].items()}
        return cls(times, found, dropped, str(content["against"]), cosine)

    def as_dict(self) -> dict[str, object]:
        """Return the table for JSON, which has no NaN; the model's description shows it."""
        return {
            "servedBy": _ranges(self.fastest),
            "milliseconds": {
                str(size): {name: round(value, 4) for name, value in times.items()}
                for size, times in sorted(self.milliseconds.items())
            },
            "against": self.against,
            LEAST_COSINE if self.cosine else RELATIVE_ERROR: {
                name: deviations.json_number(value, 7 if self.cosine else 2) for name, value in self.deviation.items()
            },
            "dropped": dict(self.dropped),
        }


def _ranges(names: list[str]) -> dict[str, str]:
    """Return engines by batch sizes: {"1": "cudnn", "2-33": "tensorrt", ...}. names: see `Table.fastest`."""
    found = {}
    for name, indices in groupby(range(len(names)), key=lambda index: names[index]):
        sizes = [index + 1 for index in indices]
        found[f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]}"] = name
    return found


def load_fastest(spec: EngineSpec, candidates: list[str]) -> tuple[str, LoadedEngine]:
    """Load the candidates, measure them unless an earlier table exists, and keep the fastest for each batch size.

    Args:
        spec: sizes up to its batch_size are measured.
        candidates: engines that can run it here.

    Returns: the engines' names joined by "+", and one engine that runs each batch by the fastest of them.

    Raises:
        ValueError: if no candidate gives fp32's outputs.
    """
    conditions = results_cache.conditions(spec, candidates)
    path = results_cache.path("measured", spec, conditions)
    with contextlib.ExitStack() as stack:
        _lock(spec, stack)
        if found := _load_kept(path, spec, candidates):
            return found
        table, loaded = measure(spec, candidates)
        if not table.failed:
            results_cache.write(path, spec.device, {"conditions": conditions, **table.as_dict()})
    return combine(loaded, table, "here")


def _lock(spec: EngineSpec, stack: contextlib.ExitStack) -> None:
    """Wait while another process measures on this GPU: two at once would disturb each other's times."""
    try:
        stack.enter_context(plans.locked(spec.plan_cache / f"gpu-{compared_here.device_id(spec.device)}"))
    except OSError as error:  # the folder cannot be written to, or its file system has no locks
        logger.warning("there is no lock, so workers that load at once may disturb each other's times: %s", error)


def _load_kept(path: Path, spec: EngineSpec, candidates: list[str]) -> tuple[str, LoadedEngine] | None:
    """Load the engines of a kept table. None if there is no table, or an engine no longer loads or passes."""
    try:
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        table = Table.from_dict(content)
        if sorted(table.milliseconds) != sizes_up_to(spec.batch_size) or not set(table.fastest) <= set(candidates):
            raise ValueError("it holds other batch sizes or engines")
        loaded = {name: engines.load(name, spec) for name in sorted(set(table.fastest))}
        compared_here.refuse_wrong(content.get("keptBy"), loaded, spec)
    except Exception as error:  # see load_passing
        logger.warning("measuring again, because %s cannot be used: %r", path, error)
        return None
    return combine(loaded, table, "earlier")


def measure(spec: EngineSpec, candidates: list[str]) -> tuple[Table, dict[str, LoadedEngine]]:
    """Compare and time the candidates.

    Returns: the table, and by name the candidates that loaded and passed.

    Raises:
        ValueError: if none passed, or memory does not suffice for one image.
    """
    reference = references.of(spec)
    if not isinstance(reference, references.Images):
        raise TypeError(f"engines of a {spec.kind} are not chosen by measurement")
    table = Table(against=reference.source)
    passing = load_passing(spec, candidates, reference, table)
    sizes = sizes_up_to(spec.batch_size)
    for number, size in enumerate(reversed(sizes), 1):
        progress.tell(f"timing batches of {size}", number, len(sizes))
        _time(size, reference.batch(spec, size), passing, table)
    if not table.milliseconds:
        raise ValueError(f"there is too little memory for one image: {table.dropped}")
    logger.info("engines measured on %s: %s", results_cache.device_name(spec.device), table.as_dict())
    return table, passing


def _time(size: int, images: ImageInputs, loaded: Mapping[str, LoadedEngine], table: Table) -> None:
    """Fill the table's row of one batch size, with the engines that memory suffices for."""
    times = {}
    for name, engine in loaded.items():
        try:
            times[name] = milliseconds(engine.run, images)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            logger.warning("engine %s has too little memory for batches of %d", name, size)
            table.failed = True
    if times:
        table.milliseconds[size] = times


def load_passing(
    spec: EngineSpec, candidates: list[str], reference: references.Images, table: Table
) -> dict[str, LoadedEngine]:
    """Load the candidates that give the reference's logits in batches of every size that is timed.

    Args:
        spec: the model.
        candidates: engines that can run it here.
        reference: fp32's outputs.
        table: gets relative errors, and why the other candidates were dropped.

    Raises:
        ValueError: if no candidate is left.
    """
    passing = {}
    for number, name in enumerate(candidates, 1):
        progress.tell(f"loading and comparing engine {name} {spec.precision}", number, len(candidates))
        try:
            engine = engines.load(name, spec)
            deviation = _compare(engine, spec, reference)
        # A torn plan, a call that this GPU's libraries lack, a kernel that does not compile (Triton has its own
        # exceptions), a folder that cannot be written to, a broken package: whatever it is, the others can serve.
        except Exception as failure:
            table.dropped[name], table.failed = f"{type(failure).__name__}: {failure}", True
        else:
            table.deviation[name], table.cosine = deviation.value, deviation.cosine
            table.failed |= not deviation.complete
            if deviation.passed:
                passing[name] = engine
            else:
                table.dropped[name] = str(deviation)
        if name in table.dropped:
            logger.warning("engine %s dropped: %s", name, table.dropped[name])
    if not passing:
        raise ValueError(f"no engine loads and passes parity in {spec.precision}: {table.dropped}")
    return passing


def _compare(engine: LoadedEngine, spec: EngineSpec, reference: references.Images) -> Deviation:
    """Compare batches of every size: each may run other kernels."""
    return references.worst_that_fit(
        lambda size: reference.deviation(engine, spec, size), sizes_up_to(spec.batch_size)[::-1]
    )


def combine(loaded: Mapping[str, LoadedEngine], table: Table, when: str) -> tuple[str, LoadedEngine]:
    """Make one engine of those that are the fastest for some batch size.

    Args:
        loaded: by name; engines that are the fastest for no size are not kept.
        table: with all of them.
        when: "here", or "earlier" if the table was kept.

    Returns: the names joined by "+", and the engine. It cuts batches that are larger than the largest timed one.
    """
    serving = [loaded[name].run for name in table.fastest]
    details = {name: loaded[name].details for name in sorted(set(table.fastest))}

    def run(images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) -> (N, classes)"""
        if len(images) > len(serving):
            return torch.cat([run(part) for part in images.split(len(serving))])
        return serving[len(images) - 1](images)

    return "+".join(details), LoadedEngine(run, {"measured": {"when": when, **table.as_dict()}, "engines": details})


def milliseconds(run: Callable[[Any], torch.Tensor], images: ImageInputs) -> float:
    """Return the median time of one call, by CUDA events. Synchronises with the GPU."""
    for _ in range(WARM_UPS):
        run(images)
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(RUNS)]
    for start, end in pairs:
        start.record()
        run(images)
        end.record()
    torch.cuda.synchronize(device_of(images))
    return float(statistics.median(start.elapsed_time(end) for start, end in pairs))
