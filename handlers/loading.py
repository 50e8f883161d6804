"""An unpacked archive -> a loaded model that says openly how it runs."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from handlers import engines, placement, settings
from handlers.engines import Engine, EngineSpec
from handlers.requests import Context

logger = logging.getLogger(__name__)

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
    folder = Path(context.system_properties["model_dir"])
    config = context.model_yaml_config or {}
    chosen = settings.read(settings_type, config.get("handler", {}))
    provenance = _read_json(folder / "provenance.json")
    torch.set_num_threads(placement.cpu_threads(chosen.cpu_threads, int(config.get("maxWorkers", 1))))
    device, why_device = placement.choose_device(chosen.device, context.system_properties.get("gpu_id"))
    precision, why_precision = placement.choose_precision(chosen.precision, device, provenance.get("parity", {}))
    spec = EngineSpec(kind, folder, device, precision, getattr(chosen, "task", ""))
    name = engines.choose(chosen.engine, spec)
    engine = engines.load(name, spec)
    device_name = placement.device_name(device)
    description = {
        "kind": kind,
        **({"task": spec.task} if spec.task else {}),
        "engine": {"name": name, **engine.details},
        "precision": {"name": precision, "why": why_precision},
        "device": {"name": device_name, "why": why_device},
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


def _read_json(path: Path) -> dict[str, Any]:
    """The archive's provenance; a folder that was not made by the packaging script has none."""
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
