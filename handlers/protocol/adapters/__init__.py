"""The protocols that are spoken: one file each, found here by itself.

A file offers `ADAPTER`, an instance of its own subclass of handlers.protocol.adapter.Adapter.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from handlers.protocol.adapter import Adapter
from handlers.protocol.row import Row


def _found() -> tuple[Adapter, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    adapters: list[Adapter] = [import_module(f"{__name__}.{name}").ADAPTER for name in names]
    return tuple(sorted(adapters, key=lambda adapter: -adapter.priority))


ADAPTERS = _found()
FOR_PLAIN_ROWS = tuple(adapter for adapter in ADAPTERS if not adapter.by_path)
DEFAULT = ADAPTERS[-1]  # TorchServe's own, which claims every row


def adapter_of(row: Row) -> Adapter:
    """Return the adapter that reads this row."""
    for adapter in FOR_PLAIN_ROWS if row.is_plain else ADAPTERS:
        if adapter.claims(row):
            return adapter
    return DEFAULT
