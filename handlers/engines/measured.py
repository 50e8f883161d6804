"""Choosing engines by measurement: on this GPU, at the batch sizes to be served, after a check against fp32.

Candidates that do not load or miss parity are dropped and named; of the others, each batch bucket gets the fastest.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from handlers.engines import Engine, EngineSpec, load
from handlers.engines.graphs import BUCKETS, bucket_of
from handlers.tolerances import MAX_RELATIVE_ERROR

WARM_UPS, RUNS = 5, 15

logger = logging.getLogger(__name__)


@dataclass
class Table:
    """What was measured. milliseconds: by bucket, then engine: median of RUNS, by CUDA events. dropped: reasons."""

    milliseconds: dict[int, dict[str, float]] = field(default_factory=dict)
    relative_error: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)

    @property
    def fastest(self) -> dict[int, str]:
        """The engine of each bucket."""
        return {bucket: min(times, key=lambda name: times[name]) for bucket, times in self.milliseconds.items()}

    def as_dict(self) -> dict[str, object]:
        return {
            "servedBy": {str(bucket): name for bucket, name in self.fastest.items()},
            "milliseconds": {
                str(bucket): {name: round(value, 4) for name, value in times.items()}
                for bucket, times in self.milliseconds.items()
            },
            "relativeError": {name: float(f"{value:.2g}") for name, value in self.relative_error.items()},
            "dropped": dict(self.dropped),
        }


def load_fastest(spec: EngineSpec, candidates: list[str]) -> tuple[str, Engine]:
    """Load the candidates, measure them, and keep the fastest for each bucket up to the spec's batch size.

    Returns their names joined by "+", and one engine that runs each batch where it is fastest.
    Raises ValueError where none passes parity.
    """
    images = torch.randn(
        (bucket_of(min(spec.batch_size, BUCKETS[-1])), 3, spec.image_size, spec.image_size),
        generator=torch.Generator().manual_seed(0),
    )
    images = images.to(spec.device).contiguous(memory_format=torch.channels_last)
    few = images[:8]
    reference = load("torch_eager", dataclasses.replace(spec, precision="fp32")).run(few)
    table = Table()
    engines = load_passing(spec, candidates, few, reference, table)
    half = images.to(spec.dtype)
    for bucket in [bucket for bucket in BUCKETS if bucket <= len(images)]:
        table.milliseconds[bucket] = {
            name: milliseconds(engine.run, half[:bucket]) for name, engine in engines.items()
        }
    logger.info("engines measured on %s: %s", torch.cuda.get_device_name(spec.device), table.as_dict())
    return combine(engines, table)


def load_passing(
    spec: EngineSpec, candidates: list[str], few: torch.Tensor, reference: torch.Tensor, table: Table
) -> dict[str, Engine]:
    """The candidates that load and give `few` images' reference logits; the others go into table.dropped.

    Raises ValueError where there is none.
    """
    engines, limit = {}, MAX_RELATIVE_ERROR[spec.precision]
    for name in candidates:
        try:
            engine = load(name, spec)
            error = _relative_error(engine.run(few.to(spec.dtype)), reference)
        except (ValueError, RuntimeError) as failure:  # a torn plan, or a call that this GPU's libraries lack
            table.dropped[name] = f"{type(failure).__name__}: {failure}"
        else:
            table.relative_error[name] = error
            if error <= limit:  # False for NaN as well
                engines[name] = engine
            else:
                table.dropped[name] = f"relative error {error:.2g} against fp32; at most {limit}"
        if name in table.dropped:
            logger.warning("engine %s dropped: %s", name, table.dropped[name])
    if not engines:
        raise ValueError(f"no engine loads and passes parity in {spec.precision}: {table.dropped}")
    return engines


def combine(engines: Mapping[str, Engine], table: Table) -> tuple[str, Engine]:
    """One engine out of those that are fastest somewhere; the others are let go."""
    serving = {bucket: engines[name].run for bucket, name in table.fastest.items()}
    kept = {name: engines[name].details for name in sorted(set(table.fastest.values()))}
    buckets = tuple(serving)

    def run(images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) -> (N, classes); more than the largest bucket runs where that does."""
        return serving[bucket_of(min(len(images), buckets[-1]), buckets)](images)

    return "+".join(kept), Engine(run, {"measured": table.as_dict(), "engines": kept})


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


def _relative_error(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest over the rows, by 2-norm."""
    errors = (logits.float() - reference.float()).norm(dim=1) / reference.float().norm(dim=1)
    return float(errors.max())
