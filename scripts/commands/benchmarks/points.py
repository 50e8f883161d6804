"""What is timed: how many items a batch has, and how long each is; and the mixes of lengths that have a name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

SQUAD_MEDIAN, SQUAD_SIGMA, SQUAD_MAX = 163, 0.35, 384


class Point(NamedTuple):
    """Items a batch; tokens an item (None for images, and in a mix); the mix's name, a key of MIXES."""

    batch: int
    length: int | None = None
    mix: str | None = None


def _squad() -> tuple[int, ...]:
    """256 lengths as of SQuAD's questions with their paragraphs: at most 384, 173 in the mean.

    The quantiles of a lognormal distribution, so that any machine gets the same ones.
    """
    normal = NormalDist(math.log(SQUAD_MEDIAN), SQUAD_SIGMA)
    drawn = (math.exp(normal.inv_cdf((place + 0.5) / 256)) for place in range(256))
    return tuple(min(round(length), SQUAD_MAX) for length in drawn)


def _half() -> tuple[int, ...]:
    """64 lengths, even from 3 to 381: half of a batch that is padded to 384 would be padding."""
    return tuple(round(384 * (place + 0.5) / 64) for place in range(64))


def _short8() -> tuple[int, ...]:
    """8 lengths, even from 10 to 128."""
    return tuple(round(10 + 118 * place / 7) for place in range(8))


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
    """Tokens of each sequence. Raises ValueError for a point that has no lengths: images."""
    if point.mix is not None:
        return MIXES[point.mix]()
    if point.length is None:
        raise ValueError(f"{point} has neither length nor mix, and a sequence is so many tokens long")
    return (point.length,) * point.batch


def point_of(row: Mapping[str, Any]) -> Point:
    """A row's point; rows from before there were mixes have none."""
    return Point(row["batch"], row["length"], row.get("mix"))


def label(point: Point) -> str:
    """ "32 x 128", "squad", and of images "32"."""
    return point.mix or (f"{point.batch} x {point.length}" if point.length else f"{point.batch}")


def spoken(point: Point) -> str:
    """For a person at a terminal: "batch 32 length 128", "squad"."""
    return point.mix or f"batch {point.batch}" + (f" length {point.length}" if point.length else "")
