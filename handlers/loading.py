"""An unpacked archive -> a loaded model, with a description of how it runs and why."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from handlers import caches, faults, gpu_memory, phases, placement, settings, unpacked_files
from handlers.engines import EngineSpec, LoadedEngine
from handlers.protocol.context import Context
from handlers.selection import choosing

logger = logging.getLogger(__name__)

PARITY_GATE = "parity_gate"  # a system property that archive/trial_run.py sets, and TorchServe does not know

S = TypeVar("S", bound=settings.Settings)


@dataclass(frozen=True)
class Model(Generic[S]):
    """A loaded archive.

    folder: of the unpacked archive.
    settings: the section `handler` of model-config.yaml.
    spec: what the engine was loaded with.
    engine: runs the network.
    description: what clients may read about how the model runs.
    """

    folder: Path
    settings: S
    spec: EngineSpec
    engine: LoadedEngine
    description: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """The network's."""
        return self.spec.device


def load(context: Context, kind: str, settings_type: type[S]) -> Model[S]:
    """Read the archive's settings, choose device, precision and engine, load, and log the choice once.

    Args:
        context: TorchServe's, of this worker.
        kind: "image-classifier" or "text-encoder".
        settings_type: of this kind.

    Raises ValueError (SettingsError among them) with what to do about it.
    """
    started = time.monotonic()
    properties = context.system_properties
    is_worker = "host" not in properties  # TorchServe starts a process for each load
    phases.begin(is_worker=is_worker)
    if is_worker and torch.version.cuda:  # other hosts decide for themselves: their process may do other work
        gpu_memory.spare()
    folder = Path(properties["model_dir"])
    config = context.model_yaml_config or {}
    chosen = settings.read(settings_type, config.get("handler", {}))
    provenance = provenance_of(folder)
    host = properties.get("host", "TorchServe")
    with phases.phase("device"):
        device, why_device = placement.choose_device(chosen.device, properties.get("gpu_id"), host)
        _prepare_process(device, chosen.cpu_threads, int(config.get("maxWorkers", 1)))
    with phases.phase("files"):  # a thread has read the weights since the entry was imported
        edited = unpacked_files.check(folder, provenance)
    precisions = placement.precisions(chosen.precision, device, provenance.get("parity", {}))
    batch_size = _batch_size(context, config)
    specs = [engine_spec(kind, folder, device, precision, chosen, batch_size) for precision in precisions]
    # Packaging asks for every precision and compares them itself: one that misses must not stop the others.
    at_gate = bool(context.system_properties.get(PARITY_GATE))
    with phases.phase("engine"):
        name, spec, engine = choosing.load_best(chosen.engine, specs, check=not at_gate)
    why_precision = _why_precision(spec, engine, precisions)
    engine = dataclasses.replace(engine, run=faults.around(engine.run))
    description = _description(name, spec, engine, why_precision, why_device, provenance)
    description["archive"] |= {"edited": edited} if edited else {}
    description["batching"] = {"batchSize": context.system_properties.get("batch_size")}
    logger.info(
        "%s: engine %s, precision %s (%s), device %s (%s), loaded in %.1f s",
        context.model_name,
        name,
        spec.precision,
        why_precision,
        placement.device_name(device),
        why_device,
        time.monotonic() - started,
    )
    return Model(folder, chosen, spec, engine, description)


def version(context: Context) -> str:
    """Return the model's version, as the archive's manifest names it; "" if there is no manifest."""
    return str(((context.manifest or {}).get("model") or {}).get("modelVersion") or "")


def _prepare_process(device: torch.device, cpu_threads: int, workers: int) -> None:
    """Set what holds for the whole process: threads, and the current GPU."""
    placement.set_threads(cpu_threads, workers, device)
    if device.type == "cuda":  # streams, events and Triton's launches use the current device
        torch.cuda.set_device(device)
        caches.keep_triton_cache()


def _why_precision(spec: EngineSpec, engine: LoadedEngine, precisions: Mapping[str, str]) -> str:
    """Why this precision serves. precisions: those that could, each with the reason."""
    if len(precisions) > 1 and "measured" in engine.details:
        return f"the fastest here of {' and '.join(precisions)}, where they give the outputs of fp32"
    return precisions[spec.precision]


def _description(
    name: str,
    spec: EngineSpec,
    engine: LoadedEngine,
    why_precision: str,
    why_device: str,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """The model's description. name: the engine's."""
    device: dict[str, Any] = {"name": placement.device_name(spec.device), "why": why_device}
    if sharing := placement.sharing(spec.device):
        device["sharing"] = sharing
    return {
        "kind": spec.kind,
        **({"task": spec.task} if spec.task else {}),
        "engine": {"name": name, **engine.details},
        "precision": {"name": spec.precision, "why": why_precision},
        "device": device,
        "archive": {"digest": provenance.get("digest"), "weights": provenance.get("weights")},
    }


def give_back_memory(device: torch.device) -> None:
    """Free the GPU memory that loading needed and serving does not, for other workers.

    PyTorch's allocator keeps the freed blocks of the comparison with fp32 and of engines that were measured.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def engine_spec(
    kind: str, folder: Path, device: torch.device, precision: str, chosen: settings.Settings, batch_size: int
) -> EngineSpec:
    """What an engine is loaded with.

    Args:
        kind: "image-classifier" or "text-encoder".
        folder: of the unpacked archive.
        device, precision: where and how the network runs.
        chosen: the archive's settings.
        batch_size: requests that TorchServe puts into one batch, at most.
    """
    spec = EngineSpec(kind, folder, device, precision)
    if isinstance(chosen, settings.ImageSettings):
        return dataclasses.replace(
            spec,
            task=chosen.task if chosen.task != "classification" else "",
            image_size=chosen.preprocess.square_size,
            batch_size=min(chosen.micro_batch, batch_size * chosen.max_inputs),
            buckets=chosen.plan_buckets,
            on_mismatch=chosen.on_mismatch,
            plan_cache=caches.named(chosen.plan_cache) if chosen.plan_cache else spec.plan_cache,
        )
    if isinstance(chosen, settings.TextSettings):
        return dataclasses.replace(
            spec,
            task=chosen.task,
            max_tokens=chosen.max_tokens,
            token_budget=chosen.token_budget,
            pooling=chosen.pooling,
            sparse_pooling=chosen.sparse_pooling,
        )
    return spec


def _batch_size(context: Context, config: dict[str, Any]) -> int:
    """The larger of the worker's batch size and the archive's: without TorchServe, only the latter is set."""
    return max(int(context.system_properties.get("batch_size") or 1), int(config.get("batchSize") or 1))


def provenance_of(folder: Path) -> dict[str, Any]:
    """Return the archive's provenance; empty for a folder that the packaging script did not make."""
    path = folder / "provenance.json"
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
