"""Answers with types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Label:
    """A class of an image, or a label of a text. score: a probability, unless the model or the request say otherwise.

    index: of the class; None for a text.
    """

    label: str
    score: float
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Entity:
    """A part of a text. start, end: its characters."""

    label: str
    score: float
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rank:
    """A document's score for a query. index: of the document in the list that was sent."""

    index: int
    score: float


def label_of(item: dict[str, Any]) -> Label:
    """Return a label of an answer."""
    return Label(item["label"], item["probability"] if "probability" in item else item["score"], item.get("index"))


def entity_of(item: dict[str, Any]) -> Entity:
    """Return an entity of an answer."""
    return Entity(item["label"], item["score"], item["text"], item["start"], item["end"])


def ranked(answers: list[Any], top_n: int | None) -> list[Rank]:
    """Return the documents' scores, the best first. answers: the labels of each document; a model of one label."""
    ranks = [Rank(index, label["score"]) for index, (label,) in enumerate(answers)]
    return sorted(ranks, key=lambda rank: -rank.score)[:top_n]
