"""What a folder's model.safetensors holds, by its header."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

WEIGHTS = "model.safetensors"
OTHER_FILES = ("adapter_config.json",)  # transformers would load an adapter too

Header = tuple[str, tuple[int, ...]]  # a tensor's type, as safetensors names it, and its shape


def headers(folder: Path) -> dict[str, Header]:
    """Return the type and shape of each tensor in a folder's WEIGHTS, by name. Reads no values.

    Raises OSError or SafetensorError if the file cannot be read.
    """
    return dict(_headers(folder / WEIGHTS))


def has_other_files(folder: Path) -> bool:
    """Whether transformers would load more than config.json and WEIGHTS."""
    return any((folder / name).exists() for name in OTHER_FILES)


def _headers(path: Path) -> Iterator[tuple[str, Header]]:
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            part = file.get_slice(name)
            yield name, (part.get_dtype(), tuple(part.get_shape()))
