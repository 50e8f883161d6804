"""Where a model keeps references to a submodule's parts: among its modules, and where nn.Module does not look."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import MethodType
from typing import Any

from torch import nn

REGISTERED = ("_modules", "_parameters", "_buffers")
DEPTH = 4  # of containers inside each other; it also ends those that contain themselves


def used_outside(model: nn.Module, part: nn.Module) -> list[str]:
    """Return the names under which `model` uses submodules or parameters of `part` outside `part`.

    `part` itself may have several names. Attributes of modules are searched, and in them lists, tuples, sets,
    dictionaries, bound methods and functools.partial. What a closure holds cannot be seen.
    """
    inside = set(part.modules())
    owned = {id(one) for one in (*(inside - {part}), *part.parameters())}
    return [
        f"{name}.{path}".lstrip(".")
        for name, module in model.named_modules()
        if module not in inside
        for path, value in _attributes(module)
        if id(value) in owned
    ]


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        for path, leaf in _leaves(name, value, DEPTH):
            yield path.partition(".")[2] if name in REGISTERED else path, leaf


def _leaves(path: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Return what a value holds, with its path. A method is named as the object that it is bound to."""
    if isinstance(value, MethodType):
        yield path, value.__self__
    elif not isinstance(value, dict | list | tuple | set | frozenset | functools.partial):
        yield path, value
    elif depth:
        for key, inner in _items(value):
            yield from _leaves(f"{path}.{key}", inner, depth - 1)


def _items(value: Any) -> Iterator[tuple[object, Any]]:
    if isinstance(value, dict):
        yield from list(value.items())
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), *enumerate(value.args), *value.keywords.items())
    else:
        yield from enumerate(value)
