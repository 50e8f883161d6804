"""Options that a client may send: what each takes, and how it comes: as a header, a parameter, or in JSON."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from handlers.near_names import did_you_mean
from handlers.protocol.errors import InvalidOption
from handlers.protocol.wording import names_of

if TYPE_CHECKING:
    from handlers.protocol.interface import Interface
    from handlers.protocol.row import Row

# Turns a value as sent into a valid one, or raises ValueError with what is wanted.
OptionReader = Callable[[object], object]
# Ratio of difflib.SequenceMatcher from which a header resembles an option: 0.75 is X-Top-N beside top_k. Headers that
# proxies, tracers and clients add stay below 0.67 (tests/unit/test_options.py has a list).
NEAR = 0.75
SHORTEST_PART = 4  # letters of a header that is a part of an option's name: X-Format, and not X-K


@functools.cache  # the options of a model, asked for with every request
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


def of_row(row: Row, model: Interface) -> dict[str, object]:
    """Return the options that a row brings as headers (X-Top-K for top_k), fields, entries or query parameters.

    A parameter goes before the header of the same option. Raises InvalidOption.
    """
    refuse_misspelt(row.headers, model)
    if model.headers.isdisjoint(row.headers) and model.options.keys().isdisjoint(row.parameters):
        return {}
    found: dict[str, object] = {}
    for name in model.options:
        header = header_of(name)
        if name in row.parameters and row.parameters[name] is not None:
            found[name] = read(name, _as_text(row.parameters[name]), model, f"parameter {name}")
        elif header in row.headers:
            found[name] = read(name, row.headers[header], model, f"header {header}")
    return found


def read(name: str, value: object, model: Interface, source: str) -> object:
    """Return an option's valid value.

    Args:
        name: as the client sent it.
        value: a str or JSON value.
        source: what brought the option, for the message: "parameter top_k", "header x-top-k".

    Raises InvalidOption.
    """
    refuse_unknown([name], model, "parameter")
    try:
        return model.options[name](value)
    except ValueError as error:
        raise InvalidOption(f"{source}: {error}") from None


def refuse_unknown(names: Collection[str], model: Interface, kind: str = "query parameter") -> None:
    """Raises InvalidOption if one of these names is no option of the model."""
    unknown = [name for name in names if name not in model.options]
    if unknown:
        near = did_you_mean(unknown, list(model.options))
        raise InvalidOption(f"unknown {kind} {names_of(unknown)}{near}; known: {model.option_names}")


def refuse_misspelt(headers: Iterable[str], model: Interface) -> None:
    """Raises InvalidOption for a header that seems to mean an option and is none of this model's own.

    That is any header whose name differs from an option's in case, hyphens, underscores or the X- alone (Top-K,
    top_k, X-TopK), and one with X- that resembles an option's name (X-Top-N, X-Truncated).
    """
    header = _misspelt(tuple(headers), model.headers, model.every_option)
    if header is not None:
        wanted = ", ".join(sorted(model.headers)) or "none"
        raise InvalidOption(f"unknown header {names_of([header])}; options that this model has: {wanted}")


@functools.lru_cache(256)  # most requests have headers of the same names, in the same order
def _misspelt(headers: tuple[str, ...], own: frozenset[str], options: tuple[str, ...]) -> str | None:
    return next((header for header in headers if header not in own and _resembles(header, options)), None)


@functools.lru_cache(4096)
def _resembles(header: str, options: tuple[str, ...]) -> bool:
    meaning = _letters(header).removeprefix("x")
    if meaning in map(_letters, options):
        return True
    return header.startswith("x-") and any(_is_near(header, meaning, option) for option in options)


def _is_near(header: str, meaning: str, option: str) -> bool:
    """Whether two names are near: by their letters, or because all words of one are in the other."""
    words, sent = set(option.split("_")), set(header[len("x-") :].split("-"))
    if words <= sent or (sent <= words and len(meaning) >= SHORTEST_PART):
        return True
    return difflib.SequenceMatcher(None, meaning, _letters(option)).ratio() >= NEAR


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _as_text(value: object) -> object:
    """A parameter's value: TorchServe hands it over as bytes."""
    return value.decode("utf-8", errors="replace") if isinstance(value, (bytes, bytearray)) else value
