"""Keys that came twice in one JSON object: parsers keep the last value, and the other one would be passed over.

A key in a JSON document is followed by the only colon that stands outside of a string. So no key came twice if the
document has as many colons as its parsed value has keys and colons in strings. That takes microseconds.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import numpy as np

from handlers.protocol.errors import InvalidJson
from handlers.protocol.wording import names_of

ESCAPES = re.compile(rb"\\(?:(u003[aA])|[\s\S])")  # an escape in a string; the group is that of a colon
LARGE = 4096  # bytes from which NumPy counts faster than bytes.count


def refuse(source: bytes | bytearray | str, parsed: object, what: str) -> None:
    """Raises InvalidJson if an object in a JSON document has a key twice.

    Args:
        source: the document, which is valid.
        parsed: what a parser made of it that keeps the last value of a key.
        what: names the document in messages.
    """
    if isinstance(parsed, (dict, list)) and _are_lost(_colons(source), parsed):
        doubled = _doubled(source)
        named = f"the key {names_of(doubled)}" if doubled else "one of its keys"
        raise InvalidJson(f"an object in {what} has {named} twice, and one value would be lost; send it once")


def _colons(source: bytes | bytearray | str) -> int:
    """Return the number of colons in a document, among them those that strings have as an escape."""
    if isinstance(source, str):
        source = source.encode()
    if b"\\" not in source or b"\\u003" not in source:
        return _count(source)
    return _count(source) + sum(found[1] is not None for found in ESCAPES.finditer(source))


def _count(source: bytes | bytearray) -> int:
    if len(source) < LARGE:
        return source.count(b":")
    return int(np.count_nonzero(np.frombuffer(source, np.uint8) == ord(":")))


def _are_lost(colons: int, parsed: object) -> bool:
    """Return whether a document has more colons than its parsed value. Looks no deeper than it has to."""
    level: list[Any] = [parsed]
    while colons and level:
        inner: list[Any] = []
        for value in level:
            kind = type(value)
            if kind is str:
                colons -= value.count(":")
            elif kind is list:
                inner += value
            elif kind is dict:
                colons -= len(value) + "".join(value).count(":")
                inner += value.values()
        level = inner
    return colons > 0


def _doubled(source: bytes | bytearray | str) -> list[str]:
    """Return the first key that came twice; none if the document is nested too deeply to look for it."""
    found: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> None:
        names = [name for name, _ in pairs]
        if not found and len(set(names)) < len(names):
            found.append(next(name for name in names if names.count(name) > 1))

    with contextlib.suppress(RecursionError):
        json.loads(source, object_pairs_hook=note)
    return found
