"""Answers that hold arrays, and become JSON when they are written."""

from __future__ import annotations

import orjson


class JsonValue:
    """A value that is written as what `as_json` returns."""

    def as_json(self) -> object:
        """Return what orjson can write."""
        raise NotImplementedError


def dumps(content: object) -> bytes:
    """Return JSON. It may hold NumPy arrays and JsonValues. Raises orjson.JSONEncodeError for other objects."""
    return orjson.dumps(content, _written, orjson.OPT_SERIALIZE_NUMPY)


def _written(value: object) -> object:
    if isinstance(value, JsonValue):
        return value.as_json()
    raise TypeError
