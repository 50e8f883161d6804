"""How error messages name what a client sent: by types and names, never by the content."""

from __future__ import annotations

from collections.abc import Collection


def names_of(names: Collection[str]) -> str:
    """Return names that a client chose, in quotes and cut to a bearable length; not all of them are valid UTF-8."""
    return ", ".join(repr(name[:40]) for name in sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def kind_of(value: object) -> str:
    """Return a JSON value's type in JSON's own words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
