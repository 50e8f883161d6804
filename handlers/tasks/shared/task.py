"""What every task of a text encoder offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from handlers.encoder.packing import TokenBatch
from handlers.protocol import encodings
from handlers.protocol.options import OptionReader
from handlers.settings import TextSettings
from handlers.texts.tokenization import Encoded, Tokenizer

Input = tuple[Encoded, Mapping[str, Any]]


@dataclass(frozen=True)
class Archive:
    """What a task is made from.

    folder: the unpacked archive. config: config.json's content. precision: of the engine that serves.
    """

    folder: Path
    config: Mapping[str, Any]
    settings: TextSettings
    tokenizer: Tokenizer
    precision: str


class TextTask:
    """What a task needs besides the encoder.

    options: may come with a request. media_types: that its answers can come as, the default first.
    """

    takes_pairs = False
    options: Mapping[str, OptionReader] = {}
    media_types: Sequence[str] = (encodings.JSON,)

    def check(self, encoded: Encoded) -> Encoded:
        """The input itself, or a RequestError where the task cannot answer it."""
        return encoded

    def check_request(self, encoded: Sequence[Encoded], options: Mapping[str, Any]) -> None:
        """Raises RequestError where the inputs of one request ask for too much together."""

    def selected(self, encoded: Sequence[Encoded]) -> list[int] | None:
        """Packed positions whose outputs the task reads, or None for all."""
        return None

    def comparable(self, outputs: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        """What two precisions are compared by: embeddings, or the logits themselves, in fp32."""
        return outputs.float()

    def answer(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> list[object]:
        """The engine's outputs -> one answer, or NotFinite, per input, in order."""
        raise NotImplementedError
