"""Choosing engines by measurement: on this GPU, at the batch sizes to be served, after a check against fp32.

Candidates that do not load or miss parity are dropped and named; of the others, each batch bucket gets the fastest.
What was measured is kept in the folder of plans, so that a model's other workers and later loads need not measure
again, unless something that the times depend on has changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
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
REFERENCE_BATCH = 32  # in fp32, which may go on while nothing else needs memory
HANDLERS = Path(__file__).parents[1]

logger = logging.getLogger(__name__)


@dataclass
class Table:
    """What was measured.

    milliseconds: by bucket, then engine: median of RUNS, by CUDA events. dropped: reasons. failed: whether one of
    them is no lasting one: an engine did not load, which it may do the next time.
    """

    milliseconds: dict[int, dict[str, float]] = field(default_factory=dict)
    relative_error: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    @property
    def fastest(self) -> dict[int, str]:
        """The engine of each bucket."""
        return {bucket: min(times, key=lambda name: times[name]) for bucket, times in self.milliseconds.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Table:
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
    """Load the candidates, measure them or know them measured, and keep the fastest for each bucket.

    Buckets go up to the one that holds the spec's batch size. Returns the names joined by "+", and one engine that
    runs each batch where it is fastest. Raises ValueError where none passes parity.
    """
    conditions = _conditions(spec, candidates)
    key = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:32]
    path = spec.plan_cache / f"measured-{key}.json"
    with contextlib.ExitStack() as held:
        _lock(spec, held)
        if found := _load_known(path, spec, candidates):
            return found
        table, engines = measure(spec, candidates)
        if not table.failed:
            _keep(path, {"conditions": conditions, **table.as_dict()})
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
        if set(table.milliseconds) != set(buckets_of(spec)) or not set(table.fastest.values()) <= set(candidates):
            raise ValueError("it is of other batch sizes or engines")
        engines = {name: load(name, spec) for name in set(table.fastest.values())}
    except Exception as error:  # see load_passing
        logger.warning("measuring again, for %s does not serve: %r", path, error)
        return None
    return combine(engines, table, "earlier")


def _keep(path: Path, content: dict[str, object]) -> None:
    try:
        plans.replace(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        logger.warning("what was measured here cannot be kept: %s", error)


def measure(spec: EngineSpec, candidates: list[str]) -> tuple[Table, dict[str, Engine]]:
    """The table, and the candidates that loaded and passed parity. Raises ValueError where there is none."""
    images = example(spec)
    exact = load("torch_eager", dataclasses.replace(spec, precision="fp32"))
    reference = torch.cat([exact.run(part) for part in images.split(REFERENCE_BATCH)])
    table = Table()
    engines = load_passing(spec, candidates, images, reference, table)
    half = images.to(spec.dtype)
    for bucket in buckets_of(spec):
        table.milliseconds[bucket] = {
            name: milliseconds(engine.run, half[:bucket]) for name, engine in engines.items()
        }
    logger.info("engines measured on %s: %s", gpu_name(spec.device), table.as_dict())
    return table, engines


def buckets_of(spec: EngineSpec) -> list[int]:
    """The batch sizes that are measured: up to the one that holds the spec's."""
    return [bucket for bucket in BUCKETS if bucket <= bucket_of(min(spec.batch_size, BUCKETS[-1]))]


def example(spec: EngineSpec) -> torch.Tensor:
    """(the largest bucket, 3, S, S) standard normal, fp32, channels_last, on the device."""
    shape = (buckets_of(spec)[-1], 3, spec.image_size, spec.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return images.to(spec.device).contiguous(memory_format=torch.channels_last)


def _conditions(spec: EngineSpec, candidates: list[str]) -> dict[str, object]:
    """What the times depend on, the driver aside."""
    files = [spec.model_dir / name for name in ("config.json", "model.safetensors", "model.onnx", "plan/model.json")]
    return {
        "files": {path.name: plans.file_digest(path) for path in files if path.is_file()},
        "candidates": sorted(candidates),
        "plan_buckets": list(spec.buckets),
        "precision": spec.precision,
        "image_size": spec.image_size,
        "batch_buckets": buckets_of(spec),
        "gpu": gpu_name(spec.device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "libraries": {name: _version(name) for name in ("triton", "tensorrt", "transformers")},
        "handlers": _source_digest(),
    }


def _gpu_id(device: torch.device) -> str:
    """One that all processes know the GPU by."""
    if device.type != "cuda":
        return str(device)
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", device.index))


def gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sources(name: str) -> list[Path]:
    return sorted((HANDLERS / name).glob("*.py"))


def _source_digest() -> str:
    """Of the code that runs, which an archive carries: newer code is measured anew."""
    files = [HANDLERS / "networks.py", *(path for name in ("engines", "kernels") for path in _sources(name))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def load_passing(
    spec: EngineSpec, candidates: list[str], images: torch.Tensor, reference: torch.Tensor, table: Table
) -> dict[str, Engine]:
    """The candidates that load and give the images' reference logits in batches of every bucket's size.

    The others go into table.dropped. Raises ValueError where none is left.
    """
    engines, limit = {}, MAX_RELATIVE_ERROR[spec.precision]
    for name in candidates:
        try:
            engine = load(name, spec)
            error = _largest_error(engine, images.to(spec.dtype), reference, buckets_of(spec))
        # A torn plan, a call that this GPU's libraries lack, a kernel that does not compile (Triton's own classes), a
        # folder that cannot be written to, a broken package: whatever it is, the others can serve.
        except Exception as failure:
            table.dropped[name], table.failed = f"{type(failure).__name__}: {failure}", True
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


def _largest_error(engine: Engine, images: torch.Tensor, reference: torch.Tensor, buckets: list[int]) -> float:
    """Of all buckets: each runs other kernels. NaN where one is."""
    errors = [_relative_error(engine.run(images[:size]), reference[:size]) for size in buckets]
    return float(torch.tensor(errors).max())


def _relative_error(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest over the rows, by 2-norm."""
    errors = (logits.float() - reference.float()).norm(dim=1) / reference.float().norm(dim=1)
    return float(errors.max())
