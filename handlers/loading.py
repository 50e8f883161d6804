"""An unpacked archive -> a loaded model that says openly how it runs."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from transformers.utils.logging import disable_progress_bar

from handlers import caches, placement, settings
from handlers.engines import Engine, EngineSpec
from handlers.protocol.context import Context
from handlers.selection import choosing

logger = logging.getLogger(__name__)

PARITY_GATE = "parity_gate"  # a system property that archive/probe.py sets, and TorchServe does not know

S = TypeVar("S", bound=settings.Settings)


@dataclass(frozen=True)
class Model(Generic[S]):
    """What `load` gives an entry: settings, engine and the description that clients may read."""

    folder: Path
    settings: S
    spec: EngineSpec
    engine: Engine
    description: dict[str, Any]

    @property
    def device(self) -> torch.device:
        return self.spec.device


def load(context: Context, kind: str, settings_type: type[S]) -> Model[S]:
    """Read the archive's settings, choose device, precision and engine, and load.

    Logs the choice once. Raises ValueError (SettingsError among them) with the way out.
    """
    started = time.monotonic()
    disable_progress_bar()  # transformers': a log is no terminal
    folder = Path(context.system_properties["model_dir"])
    config = context.model_yaml_config or {}
    chosen = settings.read(settings_type, config.get("handler", {}))
    provenance = _read_json(folder / "provenance.json")
    device, why_device = placement.choose_device(chosen.device, context.system_properties.get("gpu_id"))
    placement.set_threads(chosen.cpu_threads, int(config.get("maxWorkers", 1)), device)
    if device.type == "cuda":  # streams, events and Triton's launches go to the current device
        torch.cuda.set_device(device)
        caches.keep_triton_cache()
    precisions = placement.precisions(chosen.precision, device, provenance.get("parity", {}))
    batch_size = _batch_size(context, config)
    specs = [engine_spec(kind, folder, device, precision, chosen, batch_size) for precision in precisions]
    # Packaging asks for every precision, and compares them itself: one that misses shall not keep it from the others.
    at_gate = bool(context.system_properties.get(PARITY_GATE))
    name, spec, engine = choosing.load_best(chosen.engine, specs, check=not at_gate)
    precision, why_precision = spec.precision, precisions[spec.precision]
    if len(precisions) > 1 and "measured" in engine.details:
        why_precision = f"the fastest here of {' and '.join(precisions)}, where they give the outputs of fp32"
    device_name, sharing = placement.device_name(device), placement.sharing(device)
    description = {
        "kind": kind,
        **({"task": spec.task} if spec.task else {}),
        "engine": {"name": name, **engine.details},
        "precision": {"name": precision, "why": why_precision},
        "device": {"name": device_name, "why": why_device, **({"sharing": sharing} if sharing else {})},
        "batching": {"batchSize": context.system_properties.get("batch_size")},
        "archive": {"digest": provenance.get("digest"), "weights": provenance.get("weights")},
    }
    logger.info(
        "%s: engine %s, precision %s (%s), device %s (%s), loaded in %.1f s",
        context.model_name,
        name,
        precision,
        why_precision,
        device_name,
        why_device,
        time.monotonic() - started,
    )
    return Model(folder, chosen, spec, engine, description)


def version(context: Context) -> str:
    """Return the model's version, as the archive's manifest names it; "" if there is no manifest."""
    return str(((context.manifest or {}).get("model") or {}).get("modelVersion") or "")


def give_back_memory(device: torch.device) -> None:
    """Give the GPU back what loading needed and serving does not: other workers need it.

    PyTorch's allocator keeps freed blocks: of the comparison with fp32, of engines that were measured and dropped.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def engine_spec(
    kind: str, folder: Path, device: torch.device, precision: str, chosen: settings.Settings, batch_size: int
) -> EngineSpec:
    """What an engine is told, out of the settings. batch_size: requests that TorchServe puts together."""
    spec = EngineSpec(kind, folder, device, precision)
    if isinstance(chosen, settings.ImageSettings):
        return dataclasses.replace(
            spec,
            image_size=chosen.preprocess.size,
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
        )
    return spec


def _batch_size(context: Context, config: dict[str, Any]) -> int:
    """Of TorchServe's worker, or of the archive where a process loads it without TorchServe; the larger."""
    return max(int(context.system_properties.get("batch_size") or 1), int(config.get("batchSize") or 1))


def _read_json(path: Path) -> dict[str, Any]:
    """The archive's provenance; a folder that was not made by the packaging script has none."""
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
