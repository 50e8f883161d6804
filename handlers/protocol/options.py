"""Options that a client may send: what each takes, and the header that carries it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

OptionReader = Callable[[object], object]


def header_of(option: str) -> str:
    """The request header that carries an option: "x-top-k" for "top_k"."""
    return "x-" + option.replace("_", "-")


def whole_number(low: int, high: int) -> OptionReader:
    """An option that takes a whole number from low to high."""

    def read(value: object) -> int:
        text = value if isinstance(value, str) else str(value) if type(value) is int else ""
        if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
            raise ValueError(f"wanted: a whole number from {low} to {high}")
        return int(text)

    return read


def yes_or_no(value: object) -> bool:
    """An option that takes true or false."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueError("wanted: true or false")


def one_of(known: Sequence[str]) -> Any:
    """An option that takes one of these words."""

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"wanted: {', '.join(known)}")
        return value

    return read
