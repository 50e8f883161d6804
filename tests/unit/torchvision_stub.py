"""Lets timm be imported where torchvision cannot be: a wheel of it loads beside one build of torch alone.

timm imports torchvision for datasets, transforms and one layer, none of which its networks need to run. For a process
of its own: transformers, once imported, remembers what was there.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from enum import Enum
from typing import Any

import torch

MODULES = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)
InterpolationMode = Enum("InterpolationMode", "NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS")


class FrozenBatchNorm2d(torch.nn.Module):
    """A layer that timm's networks are asked for by type."""


class Stub(types.ModuleType):
    """A module that has a class for every name."""

    __path__: list[str] = []  # noqa: RUF012  # of a package: submodules may be imported
    own = {"FrozenBatchNorm2d": FrozenBatchNorm2d, "InterpolationMode": InterpolationMode}  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.own.get(name) or type(name, (), {})


def install() -> None:
    """Put the stub in torchvision's place, unless the real one can be imported."""
    try:
        importlib.import_module("torchvision")
    except Exception:  # ImportError; RuntimeError of one for another torch
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in MODULES:
            module = Stub(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            sys.modules[name] = module
            if "." in name:
                parent, _, own = name.rpartition(".")
                setattr(sys.modules[parent], own, module)
