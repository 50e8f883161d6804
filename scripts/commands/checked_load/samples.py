"""Requests whose answers are known and differ from each other, so that a swapped answer is noticed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.client import Client, refusal
from server.errors import ServerError
from server.http import Answer

TOLERANCE = 0.02  # a batch may be computed in another order than a lone input, and in half precision


@dataclass(frozen=True)
class Sample:
    """A request and its answer, parsed."""

    body: bytes
    content_type: str
    answer: Any

    def fits(self, answer: Any) -> bool:
        """Whether an answer, parsed, is that of this request."""
        return alike(self.answer, answer)


def texts(count: int) -> list[tuple[bytes, str]]:
    """Different texts, as (body, content type)."""
    things = ("parcel", "invoice", "river", "piano", "weather", "engine", "recipe", "mountain", "contract", "violin")
    return [
        (f"{things[index % len(things)]} {'and more ' * (index // len(things))}{index}".encode(), "text/plain")
        for index in range(count)
    ]


def files(folder: Path) -> list[tuple[bytes, str]]:
    """The files of a folder as bodies; TorchServe hands them on as they are."""
    return [(path.read_bytes(), "") for path in sorted(folder.iterdir()) if path.is_file()]


def known(client: Client, model: str, inputs: Iterable[tuple[bytes, str]]) -> list[Sample]:
    """Ask for each input alone, while nothing else is asked; what comes is its answer.

    Raises ServerError if an input is refused, or if two inputs have answers that could be taken for each other.
    """
    samples = [Sample(*item, _answer(client.predict(model, *item))) for item in inputs]
    for first, second in itertools.combinations(range(len(samples)), 2):
        if samples[first].fits(samples[second].answer):
            raise ServerError(f"inputs {first} and {second} have answers too alike to tell a swap; take other inputs")
    return samples


def alike(wanted: Any, found: Any) -> bool:
    """Whether two parsed answers have the same words, and numbers within TOLERANCE of the largest."""
    ours, theirs = list(_leaves(wanted)), list(_leaves(found))
    if len(ours) != len(theirs):
        return False
    numbers = [abs(value) for value in ours if isinstance(value, float)]
    allowed = TOLERANCE * max(numbers, default=0.0)
    return all(
        abs(a - b) <= allowed if isinstance(a, float) and isinstance(b, float) else a == b
        for a, b in zip(ours, theirs, strict=True)
    )


def _leaves(value: Any) -> Iterator[object]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _leaves(value[key])
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield float(value) if isinstance(value, (int, float)) else value


def _answer(answer: Answer) -> Any:
    if answer.status != 200:
        raise ServerError(f"an input was refused: {refusal(answer)}")
    return answer.json()
