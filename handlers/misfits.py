"""Reports on named weights that do not fit a network: which are missing, unexpected, of another shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
Problems = dict[str, list[str]]


def listed(items: Iterable[object], most: int = 20) -> str:
    """Join the items with commas. Only the first `most` are named; of more, the total is given."""
    every = [str(item) for item in items]
    rest = f", ... ({len(every)} in all)" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def report(problems: Mapping[str, Iterable[object]], most: int = 20) -> str:
    """Return "missing: a, b; unexpected: c" for {"missing": ["a", "b"], "unexpected": ["c"]}.

    Problems with nothing in them are left out, so the result is "" if there are none. At most `most` items are named
    per problem.
    """
    named = {problem: listed(items, most) for problem, items in problems.items()}
    return "; ".join(f"{problem}: {items}" for problem, items in named.items() if items)


def named_misfits(found: Iterable[str], wanted: Iterable[str]) -> Problems:
    """Compare names alone. Returns what is "missing" and "unexpected", as `report` takes it."""
    there, needed = dict.fromkeys(found), dict.fromkeys(wanted)
    return {
        "missing": [name for name in needed if name not in there],
        "unexpected": sorted(name for name in there if name not in needed),
    }


def misfits(found: Shapes, wanted: Shapes) -> Problems:
    """Compare the shapes of a file's weights with those of a network, by name.

    Returns:
        What is "missing", "unexpected" and "misshapen", as `report` takes it; empty lists if all fit.
    """
    both = [name for name in wanted if name in found]
    return {
        "missing": [f"{name} {shape}" for name, shape in wanted.items() if name not in found],
        "unexpected": [f"{name} {shape}" for name, shape in found.items() if name not in wanted],
        "misshapen": [misshapen(name, found[name], wanted[name]) for name in both if found[name] != wanted[name]],
    }


def misshapen(name: str, found: Iterable[int], wanted: Iterable[int]) -> str:
    """Return what is said of one weight with another shape than wanted."""
    return f"{name} is {tuple(found)}, wanted {tuple(wanted)}"


def loading_misfits(loading_info: Mapping[str, Any]) -> Problems:
    """Return what transformers' from_pretrained(output_loading_info=True) reports, in the form of `misfits`."""
    return {
        "missing": sorted(loading_info["missing_keys"]),
        "unexpected": sorted(loading_info["unexpected_keys"]),
        "misshapen": [misshapen(*mismatch) for mismatch in sorted(loading_info["mismatched_keys"])],
    }
