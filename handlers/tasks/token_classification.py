"""The task "token-classification": entities of a text, or the tags of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handlers.encoder.packing import TokenBatch
from handlers.protocol.errors import NotFinite
from handlers.protocol.inner_options import PIPELINE_FORM
from handlers.protocol.options import one_of
from handlers.tasks.shared import entities
from handlers.tasks.shared.entities import Tagged
from handlers.tasks.shared.head import Head
from handlers.tasks.shared.scores import labels_of
from handlers.tasks.shared.special_tokens import special_token
from handlers.tasks.shared.task import Answers, Archive, Input, TextTask
from handlers.tasks.shared.word_pieces import WordPieces
from handlers.texts.tokenization import Encoded
from handlers.transfers import Download

HEAD = Head(
    "AutoModelForTokenClassification",
    ("ForTokenClassification",),
    output="logits",
    rows="token",
    has_labels=True,
)
OPTIONS = ("aggregation_strategy",)
STRATEGY = "simple"  # if a request asks for none


class TokenClassification(TextTask):
    """Answers with entities, joined by one of transformers' aggregation strategies.

    Args:
        config: config.json's content.
        pieces: what the tokenizer knows of words; None if no request asks for strategies of words or for
            transformers' form.
    """

    def __init__(self, config: Mapping[str, Any], pieces: WordPieces | None = None) -> None:
        self.labels, self.pieces = labels_of(config), pieces
        self.options = {"aggregation_strategy": _strategy}

    def begin(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> Answers:
        download, ends = Download(outputs.float()), list(accumulate(batch.lengths))[:-1]

        def answers() -> list[object]:
            (logits,) = download.arrays()  # (T, labels)
            return [
                self._answer_one(encoded, options, own) if np.isfinite(own).all() else NotFinite()
                for (encoded, options), own in zip(inputs, np.split(logits, ends), strict=True)
            ]

        return answers

    def _answer_one(
        self, encoded: Encoded, options: Mapping[str, Any], logits: NDArray[np.float32]
    ) -> list[dict[str, object]]:
        strategy = str(options.get("aggregation_strategy", STRATEGY))
        scores = _softmax(logits)
        best = scores.argmax(axis=1).tolist()
        tokens = [
            Tagged(self.labels[best[index]], float(scores[index, best[index]]), (index,))
            for index, special in enumerate(encoded.encoding.special_tokens_mask)
            if not special
        ]

        def average(own: Sequence[int]) -> tuple[str, float]:
            means = np.nanmean(scores[list(own)], axis=0)
            return self.labels[int(means.argmax())], float(means.max())

        parts = entities.found(tokens, strategy, lambda index: self._known.continues(encoded, index), average)
        form = self._in_pipeline_form if options.get(PIPELINE_FORM) else _in_own_form
        return [form(encoded, part, strategy) for part in parts]

    @property
    def _known(self) -> WordPieces:
        if self.pieces is None:
            raise ValueError("this needs the tokenizer's words")
        return self.pieces

    def _in_pipeline_form(self, encoded: Encoded, part: Tagged, strategy: str) -> dict[str, object]:
        """An entity as transformers' pipeline gives it, with the word as the tokenizer writes it."""
        start, end = _place(encoded, part)
        tokens = [self._known.token(encoded, index) for index in part.tokens]
        if strategy == "none":
            return {
                "entity": part.tag,
                "score": part.score,
                "index": part.tokens[0],
                "word": tokens[0],
                "start": start,
                "end": end,
            }
        word = self._word(encoded, part, tokens, strategy)
        return {"entity_group": part.tag, "score": part.score, "word": word, "start": start, "end": end}

    def _word(self, encoded: Encoded, part: Tagged, tokens: list[str], strategy: str) -> str:
        """The text of an entity. Strategies of words decode each word, and then the words together."""
        if strategy not in entities.OF_WORDS:
            return self._known.joined(tokens)
        words: list[list[str]] = []
        for index, token in zip(part.tokens, tokens, strict=True):
            if words and self._known.continues(encoded, index):
                words[-1].append(token)
            else:
                words.append([token])
        return self._known.joined([self._known.joined(word) for word in words])


def _in_own_form(encoded: Encoded, part: Tagged, strategy: str) -> dict[str, object]:
    start, end = _without_blanks(encoded.text, *_place(encoded, part))
    index = {"index": part.tokens[0]} if strategy == "none" else {}
    text = encoded.text[start:end]
    return {"label": part.tag, "score": part.score, **index, "text": text, "start": start, "end": end}


def _place(encoded: Encoded, part: Tagged) -> tuple[int, int]:
    """Return where a part begins and ends in its text, in characters."""
    offsets = encoded.encoding.offsets
    return offsets[part.tokens[0]][0], offsets[part.tokens[-1]][1]


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the part text[start:end] without the blanks around it; a part of blanks alone is empty, at its end.

    Some tokenizers count the blank before a word to the word.
    """
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return start, max(start, end - (len(part) - len(part.rstrip())))


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities (T, labels), rounded as in transformers' pipeline: near ties fall alike."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return scores


def _strategy(value: object) -> object:
    """Read the option aggregation_strategy; transformers takes capitals too."""
    return one_of(entities.STRATEGIES)(value.lower() if isinstance(value, str) else value)


def make(archive: Archive) -> TextTask:
    """Return the task of an archive."""
    pieces = WordPieces(archive.tokenizer.whole, special_token(archive.folder, "unk_token"))
    return TokenClassification(archive.config, pieces)
