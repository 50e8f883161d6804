"""What error messages may say of what a client sent: types and names, never the content."""

from __future__ import annotations

from collections.abc import Collection


def names_of(names: Collection[str]) -> str:
    """Names that a client chose, cut to what an error message can bear; repr, since not all are valid UTF-8."""
    return ", ".join(repr(name[:40]) for name in sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def kind_of(value: object) -> str:
    """A JSON value's type in JSON's own words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
