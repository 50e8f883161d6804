"""How the commands read their options: types for argparse that say what came and what was wanted."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def checked(read: Callable[[str], T]) -> Callable[[str], T]:
    """`read` as a type for argparse: a ValueError's text is shown as it is."""

    def type_of(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return type_of


def parts(text: str) -> list[str]:
    """The different parts of a list: "a, b,a" -> ["a", "b"]."""
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


@checked
def positive(text: str) -> int:
    """A whole number, 1 or more."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"{text!r}; wanted: a whole number, 1 or more")
    return int(text)


@checked
def seconds(text: str) -> float:
    """A number of seconds above 0, such as 10 or 0.5."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise ValueError(f"{text!r}; wanted: seconds above 0, such as 10 or 0.5")
    return found


@checked
def port(text: str) -> int:
    """A port's number, 1 to 65535."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ValueError(f"{text!r}; wanted: a port, 1 to 65535")
    return int(text)
