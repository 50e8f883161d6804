"""How a network runs: one file per engine. A new file in this folder is a new engine; no list names it.

Such a file defines a subclass of `Engine` and offers one object of it as ENGINE. `Engine` documents each member;
those with a default are optional. The file's name is the engine's name in settings. Example, doubling.py:

    class DoublingEngine(Engine):
        kinds = ("image-classifier",)
        rank = 5

        def why_not_here(self, spec: EngineSpec) -> str | None:
            return None if spec.device.type == "cpu" else f"it runs on CPUs, and the device is {spec.device}"

        def load(self, spec: EngineSpec) -> LoadedEngine:
            return LoadedEngine(lambda images: 2 * images.mean(dim=(2, 3)), {"library": "none"})

    ENGINE = DoublingEngine()

Files without ENGINE are parts that engines share: networks and text_networks load models, bert_folders and
resnet_folders do so without transformers, placing moves them to their device, folding and onnx_networks transform
them, graphs captures CUDA graphs, plans keeps TensorRT's files.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

from handlers.engines.base import DTYPES, Engine, EngineSpec, LoadedEngine

__all__ = ["DTYPES", "Engine", "EngineSpec", "LoadedEngine", "get", "load", "names"]


def names(kind: str | None = None) -> list[str]:
    """Return the names of all engines that run models of `kind` (None: of any kind), highest rank first."""
    found = {name: engine for name, engine in _all().items() if kind is None or kind in engine.kinds}
    return sorted(found, key=lambda name: -found[name].rank)


def get(name: str) -> Engine:
    """Return the engine of this name. Raises KeyError if there is none."""
    return _all()[name]


def load(name: str, spec: EngineSpec) -> LoadedEngine:
    """Load `spec` with the engine of this name. Raises what `Engine.load` raises."""
    return get(name).load(spec)


def _all() -> dict[str, Engine]:
    """Import the engines of this folder, and return them by file name. Raises TypeError for a wrong ENGINE."""
    names = [item.name for item in pkgutil.iter_modules(__path__) if _mentions_engine(item.name)]
    modules = {name: import_module(f"{__name__}.{name}") for name in names}
    offered = {name: module.ENGINE for name, module in modules.items() if hasattr(module, "ENGINE")}
    for name, engine in offered.items():
        if not isinstance(engine, Engine):
            raise TypeError(f"ENGINE of handlers/engines/{name}.py is {engine!r}; wanted: an object of Engine")
    return offered


def _mentions_engine(name: str) -> bool:
    """Whether a file may offer an ENGINE. The others stay unread: `networks` imports seconds of transformers."""
    files = [path for folder in __path__ if (path := Path(folder) / f"{name}.py").is_file()]
    return not files or any("ENGINE" in file.read_text(encoding="utf-8") for file in files)
