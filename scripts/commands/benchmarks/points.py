"""Points: how many items a batch has, and how long each is; and the named mixes of lengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

SQUAD_MEDIAN, SQUAD_SIGMA, SQUAD_MAX = 163, 0.35, 384


class Point(NamedTuple):
    """Items per batch; tokens per item (None for images and mixes); the name of the mix, a key of MIXES."""

    batch: int
    length: int | None = None
    mix: str | None = None


def _squad() -> tuple[int, ...]:
    """256 lengths like those of SQuAD's questions with their paragraphs: at most 384 tokens, 173 in the mean.

    They are the quantiles of a lognormal distribution, so that every machine gets the same.
    """
    normal = NormalDist(math.log(SQUAD_MEDIAN), SQUAD_SIGMA)
    drawn = (math.exp(normal.inv_cdf((index + 0.5) / 256)) for index in range(256))
    return tuple(min(round(length), SQUAD_MAX) for length in drawn)


def _half() -> tuple[int, ...]:
    """64 lengths, evenly from 3 to 381: padded to 384, half of the batch would be padding."""
    return tuple(round(384 * (index + 0.5) / 64) for index in range(64))


def _short8() -> tuple[int, ...]:
    """8 lengths, evenly from 10 to 128."""
    return tuple(round(10 + 118 * index / 7) for index in range(8))


MIXES: Mapping[str, Callable[[], tuple[int, ...]]] = {"squad": _squad, "half": _half, "short8": _short8}


def parse(text: str) -> Point:
    """ "32x128" -> 32 sequences of 128 tokens; "squad" -> that mix. Raises ValueError."""
    if text in MIXES:
        return Point(len(MIXES[text]()), None, text)
    batch, _, length = text.partition("x")
    if not all(part.isascii() and part.isdigit() and int(part) for part in (batch, length)):
        raise ValueError(f"{text!r}; wanted: BATCHxLENGTH (32x128), or one of the mixes {', '.join(MIXES)}")
    return Point(int(batch), int(length))


def lengths_of(point: Point) -> tuple[int, ...]:
    """The tokens of each sequence. Raises ValueError for a point of images, which has no lengths."""
    if point.mix is not None:
        return MIXES[point.mix]()
    if point.length is None:
        raise ValueError(f"{point} has neither length nor mix, and a sequence is so many tokens long")
    return (point.length,) * point.batch


def point_of(row: Mapping[str, Any]) -> Point:
    """A row's point. Rows of old benchmarks have no mix."""
    return Point(row["batch"], row["length"], row.get("mix"))


def label(point: Point) -> str:
    """ "32 x 128", "squad", and of images "32"."""
    return point.mix or (f"{point.batch} x {point.length}" if point.length else f"{point.batch}")


def spoken(point: Point) -> str:
    """For a person at a terminal: "batch 32 length 128", "squad"."""
    return point.mix or f"batch {point.batch}" + (f" length {point.length}" if point.length else "")
