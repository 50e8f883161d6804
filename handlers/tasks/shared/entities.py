"""Tags of tokens -> entities, by the aggregation strategies of transformers' TokenClassificationPipeline.

| strategy | what gets a tag | what is answered |
|---|---|---|
| none | a token | each token |
| simple | a token | runs of tokens with one tag |
| first | a word: the tag of its first token | runs of words with one tag |
| max | a word: the tag with the highest score of all its tokens | runs of words with one tag |
| average | a word: the best tag after the mean of its tokens' scores | runs of words with one tag |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

STRATEGIES = ("none", "simple", "first", "average", "max")
OF_WORDS = ("first", "average", "max")
OUTSIDE = "O"  # the tag of tokens that are no entities


@dataclass(frozen=True)
class Tagged:
    """A token, word or entity.

    Args:
        tag: as config.json has it ("B-PER") for tokens and words, without its "B-" or "I-" for entities.
        score: of the tag.
        tokens: indices of its tokens, ascending.
    """

    tag: str
    score: float
    tokens: tuple[int, ...]


def found(
    tokens: Sequence[Tagged],
    strategy: str,
    continues: Callable[[int], bool],
    average: Callable[[Sequence[int]], tuple[str, float]],
) -> list[Tagged]:
    """Return what a strategy answers, without what is outside entities.

    Args:
        tokens: of one text, without those that the tokenizer added.
        strategy: one of STRATEGIES.
        continues: whether the token at an index belongs to the same word as the one before it.
        average: the best tag, and its score, after the mean of these tokens' scores.
    """
    if strategy == "none":
        parts: Iterable[Tagged] = tokens
    elif strategy in OF_WORDS:
        parts = _entities([_word(word, strategy, average) for word in _words(tokens, continues)])
    else:
        parts = _entities(tokens)
    return [part for part in parts if part.tag != OUTSIDE]


def _words(tokens: Sequence[Tagged], continues: Callable[[int], bool]) -> list[list[Tagged]]:
    words: list[list[Tagged]] = []
    for token in tokens:
        if words and continues(token.tokens[0]):
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _word(tokens: Sequence[Tagged], strategy: str, average: Callable[[Sequence[int]], tuple[str, float]]) -> Tagged:
    indices = tuple(index for token in tokens for index in token.tokens)
    if strategy == "average":
        return Tagged(*average(indices), indices)
    chosen = tokens[0] if strategy == "first" else max(tokens, key=lambda token: token.score)
    return Tagged(chosen.tag, chosen.score, indices)


def _entities(parts: Sequence[Tagged]) -> list[Tagged]:
    """Join neighbours of one kind, unless the second begins an entity of its own."""
    groups: list[list[Tagged]] = []
    for part in parts:
        if groups and part.tag[:2] != "B-" and _kind(part.tag) == _kind(groups[-1][-1].tag):
            groups[-1].append(part)
        else:
            groups.append([part])
    return [_entity(group) for group in groups]


def _entity(parts: Sequence[Tagged]) -> Tagged:
    score = sum(part.score for part in parts) / len(parts)
    return Tagged(parts[0].tag.split("-", 1)[-1], score, tuple(index for part in parts for index in part.tokens))


def _kind(tag: str) -> str:
    return tag[2:] if tag[:2] in ("B-", "I-") else tag
