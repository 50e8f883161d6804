"""Choosing engines by measurement: on this GPU, at the batch sizes to be served, after a check against fp32.

Candidates that do not load or miss parity are dropped and named; of the others, each batch bucket gets the fastest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from handlers.engines import Engine, EngineSpec, load, plans
from handlers.engines.graphs import BUCKETS, bucket_of
from handlers.tolerances import MAX_RELATIVE_ERROR

WARM_UPS, RUNS = 5, 15
FILE = "table.json"
HANDLERS = Path(__file__).parents[1]

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

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Table:
        """Of `as_dict`. Raises KeyError, TypeError, AttributeError or ValueError where it is something else."""
        times = {
            int(bucket): {str(name): float(value) for name, value in of_bucket.items()}
            for bucket, of_bucket in content["milliseconds"].items()
        }
        errors = {str(name): float(value) for name, value in content["relativeError"].items()}
        return cls(times, errors, {str(name): str(why) for name, why in content["dropped"].items()})

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

    Measured once: the table lies beside the plans, for the workers and the loads that follow, as long as weights,
    GPU, libraries and candidates stay. Returns the names joined by "+", and one engine that runs each batch where it
    is fastest. Raises ValueError where none passes parity.
    """
    conditions = _conditions(spec, candidates)
    key = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:32]
    folder = spec.plan_cache / f"measured-{key}"
    if problem := _not_writable(folder):
        logger.warning("what is measured here cannot be kept: %s", problem)
        table, engines = measure(spec, candidates)
        return combine(engines, table, "here")
    with plans.locked(folder):  # two that measure at once on one GPU would measure each other
        known = _remembered(folder / FILE, spec, candidates)
        if known is None:
            table, engines = measure(spec, candidates)
            content = {"conditions": conditions, **table.as_dict()}
            plans.replace(folder / FILE, (json.dumps(content, indent=1) + "\n").encode())
            return combine(engines, table, "here")
    try:
        return _load_by(known, spec)
    except (ValueError, RuntimeError) as error:  # a plan that was torn since
        logger.warning("what was measured earlier cannot be loaded: %s; measuring again", error)
        (folder / FILE).unlink(missing_ok=True)
        return load_fastest(spec, candidates)


def measure(spec: EngineSpec, candidates: list[str]) -> tuple[Table, dict[str, Engine]]:
    """The table, and the candidates that loaded and passed parity. Raises ValueError where there is none."""
    images = example(spec)
    few = images[:8]
    reference = load("torch_eager", dataclasses.replace(spec, precision="fp32")).run(few)
    table = Table()
    engines = load_passing(spec, candidates, few, reference, table)
    half = images.to(spec.dtype)
    for bucket in buckets_of(spec):
        table.milliseconds[bucket] = {
            name: milliseconds(engine.run, half[:bucket]) for name, engine in engines.items()
        }
    logger.info("engines measured on %s: %s", device_name(spec.device), table.as_dict())
    return table, engines


def buckets_of(spec: EngineSpec) -> list[int]:
    """The batch sizes that are measured: up to the one that holds the spec's."""
    return [bucket for bucket in BUCKETS if bucket <= bucket_of(min(spec.batch_size, BUCKETS[-1]))]


def example(spec: EngineSpec) -> torch.Tensor:
    """(the largest bucket, 3, S, S) standard normal, fp32, channels_last, on the device."""
    shape = (buckets_of(spec)[-1], 3, spec.image_size, spec.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return images.to(spec.device).contiguous(memory_format=torch.channels_last)


def _remembered(path: Path, spec: EngineSpec, candidates: list[str]) -> Table | None:
    """A table that was measured before; None where there is none that serves."""
    if not path.is_file():
        return None
    try:
        table = Table.read(json.loads(path.read_text(encoding="utf-8")))
        if set(table.milliseconds) != set(buckets_of(spec)) or not set(table.fastest.values()) <= set(candidates):
            raise ValueError("it is of other batch sizes or engines")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is no table of times: %r; measuring again", path, error)
        return None
    return table


def _load_by(table: Table, spec: EngineSpec) -> tuple[str, Engine]:
    """The engines that are fastest somewhere, each bucket run once: first requests shall not pay for graphs."""
    name, engine = combine({name: load(name, spec) for name in set(table.fastest.values())}, table, "earlier")
    half = example(spec).to(spec.dtype)
    for bucket in table.milliseconds:
        engine.run(half[:bucket])
    return name, engine


def _not_writable(folder: Path) -> str | None:
    """Why nothing can be kept in `folder`, which is made; or None."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return None if os.access(folder, os.W_OK) else f"{folder} is not writable"


def _conditions(spec: EngineSpec, candidates: list[str]) -> dict[str, object]:
    """All that the times depend on."""
    return {
        "weights": plans.file_digest(spec.model_dir / "model.safetensors"),
        "candidates": sorted(candidates),
        "plan_buckets": list(spec.buckets),
        "precision": spec.precision,
        "image_size": spec.image_size,
        "batch_buckets": buckets_of(spec),
        "gpu": device_name(spec.device),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "libraries": {name: _version(name) for name in ("triton", "tensorrt", "transformers")},
        "handlers": _source_digest(),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _source_digest() -> str:
    """Of the engines' and the kernels' own code, which an archive carries: newer code is measured anew."""
    files = sorted(path for name in ("engines", "kernels") for path in (HANDLERS / name).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


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


def combine(engines: Mapping[str, Engine], table: Table, when: str) -> tuple[str, Engine]:
    """One engine out of those that are fastest somewhere; the others are let go. when: "here" or "earlier"."""
    serving = {bucket: engines[name].run for bucket, name in table.fastest.items()}
    kept = {name: engines[name].details for name in sorted(set(table.fastest.values()))}
    buckets = tuple(serving)

    def run(images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) -> (N, classes); more than the largest bucket runs where that does."""
        return serving[bucket_of(min(len(images), buckets[-1]), buckets)](images)

    return "+".join(kept), Engine(run, {"measured": {"when": when, **table.as_dict()}, "engines": kept})


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
