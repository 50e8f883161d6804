"""The task "fill-mask": the likeliest tokens at each mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from handlers.encoder.packing import TokenBatch
from handlers.protocol.errors import InvalidInput, NotFinite, PayloadTooLarge
from handlers.protocol.options import whole_number
from handlers.tasks.shared.head import Head
from handlers.tasks.shared.scores import begin_top, finite, float_or_nan
from handlers.tasks.shared.special_tokens import special_token
from handlers.tasks.shared.task import Answers, Archive, Input, TextTask
from handlers.texts.tokenization import Encoded, Tokenizer

HEAD = Head("AutoModelForMaskedLM", ("ForMaskedLM", "ForPreTraining"), output="logits", rows="mask")
OPTIONS = ("top_k",)
MAX_FILLINGS = 1000  # per request: each is decoded with the whole text around it, and answered with it


class FillMask(TextTask):
    """Answers with the likeliest tokens at the mask; with a list of such lists if a text has several masks."""

    reads_offsets = False

    def __init__(self, mask_token: str, tokenizer: Tokenizer, count: int) -> None:
        self.tokenizer, self.mask_token = tokenizer.whole, mask_token
        self.mask_id = self.tokenizer.encode(mask_token, add_special_tokens=False).ids[0]
        vocabulary = self.tokenizer.get_vocab_size()
        self.count = min(count or 5, vocabulary)
        self.options = {"top_k": whole_number(1, min(100, vocabulary))}

    def check(self, encoded: Encoded) -> Encoded:
        if self.mask_id not in encoded.ids:
            raise InvalidInput(f"the text holds no {self.mask_token} (after truncation, if any); wanted: one or more")
        return encoded

    def check_request(self, encoded: Sequence[Encoded], options: Mapping[str, Any]) -> None:
        masks, count = sum(len(self._masks(item)) for item in encoded), int(options.get("top_k", self.count))
        if masks * count > MAX_FILLINGS:
            raise PayloadTooLarge(
                f"the request asks for {masks * count} fillings ({masks} masks, {count} each); at most "
                f"{MAX_FILLINGS} go into one request"
            )

    def selected(self, encoded: Sequence[Encoded]) -> list[int]:
        starts = accumulate((len(item.ids) for item in encoded), initial=0)
        return [s + i for s, item in zip(starts, encoded, strict=False) for i in self._masks(item)]

    def begin(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> Answers:
        counts = [int(options.get("top_k", self.count)) for _, options in inputs]
        top = begin_top(float_or_nan(outputs).softmax(dim=1), max(counts))

        def answers() -> list[object]:
            rows = iter(zip(*top(), strict=True))
            return [self._answer_one(item, rows, n) for (item, _), n in zip(inputs, counts, strict=True)]

        return answers

    def _answer_one(self, encoded: Encoded, rows: Iterable[tuple[list[float], list[int]]], count: int) -> object:
        masks = self._masks(encoded)
        own = list(
            zip(masks, rows, strict=False)
        )  # all of this text's rows, even if one is broken: the next text's follow
        fillings = []
        for index, (values, tokens) in own:
            if not finite(values):
                return NotFinite()
            chosen = zip(values[:count], tokens[:count], strict=True)
            fillings.append([self._filling(encoded, index, token, value) for value, token in chosen])
        return fillings[0] if len(masks) == 1 else fillings

    def _filling(self, encoded: Encoded, index: int, token: int, score: float) -> dict[str, object]:
        filled = [*encoded.ids[:index], token, *encoded.ids[index + 1 :]]
        # The other masks of the text stay visible.
        sequence = self.tokenizer.decode(filled, skip_special_tokens=encoded.ids.count(self.mask_id) == 1)
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token], skip_special_tokens=False),
            "sequence": sequence,
        }

    def _masks(self, encoded: Encoded) -> list[int]:
        return [index for index, token in enumerate(encoded.ids) if token == self.mask_id]


def mask_token(folder: Path) -> str:
    """Return the tokenizer's mask token, from its own files. Raises ValueError if it has none."""
    token = special_token(folder, "mask_token")
    if token is None:
        raise ValueError(f"the tokenizer in {folder} has no mask_token, which fill-mask needs")
    return token


def make(archive: Archive) -> TextTask:
    """Return the task of an archive."""
    return FillMask(mask_token(archive.folder), archive.tokenizer, archive.settings.top_k)
