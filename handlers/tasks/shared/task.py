"""What every task of a text encoder offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from handlers.encoder.packing import TokenBatch
from handlers.protocol import encodings
from handlers.protocol.options import OptionReader
from handlers.texts.tokenization import Encoded, Tokenizer

if TYPE_CHECKING:
    from handlers.settings import TextSettings

Input = tuple[Encoded, Mapping[str, Any]]  # tokens of one text, and its request's options
Answers = Callable[[], list[object]]  # waits for a download, and returns an answer or NotFinite per input, in order


@dataclass(frozen=True)
class Archive:
    """What a task is made from.

    Args:
        folder: the unpacked archive.
        config: config.json's content.
        precision: of the engine that serves.
    """

    folder: Path
    config: Mapping[str, Any]
    settings: TextSettings
    tokenizer: Tokenizer
    precision: str


class TextTask:
    """What a task does before and after the network.

    Args:
        takes_pairs: whether `{"text": ..., "text_pair": ...}` is an input.
        options: that a request may bring, besides "truncate"; their names are the file's OPTIONS.
        labels: that scores belong to, in the order of the logits; none if the task gives no scores by label.
        media_types: that an answer can come as, the default first. Others than JSON take answers that are arrays.
        details: what the model's description says of the task.
        reads_offsets: whether the task reads offsets into the texts, which cost a fifth of the time of tokenizing.
        ahead: micro-batches that may be launched before the answers of an earlier one are written. Their downloads
            hold memory; more than a few gain nothing.
    """

    takes_pairs = False
    labels: Sequence[str] = ()
    options: Mapping[str, OptionReader] = {}
    media_types: Sequence[str] = (encodings.JSON,)
    details: Mapping[str, object] = {}
    reads_offsets = True
    ahead = 4

    def check(self, encoded: Encoded) -> Encoded:
        """Return the input itself. Raises RequestError if the task cannot answer it."""
        return encoded

    def check_request(self, encoded: Sequence[Encoded], options: Mapping[str, Any]) -> None:
        """Raises RequestError if the inputs of one request ask for too much together."""

    def check_answers(self, answers: Sequence[object]) -> None:
        """Raises RequestError if the answers of one request are too much together."""

    def selected(self, encoded: Sequence[Encoded]) -> list[int] | None:
        """Return the positions in the packed batch whose outputs the task reads, or None for all."""
        return None

    def comparable(self, outputs: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        """Return what two precisions are compared by, in fp32: embeddings, or the logits themselves."""
        return outputs.float()

    def compared(self, outputs: torch.Tensor, batch: TokenBatch, encoded: Sequence[Encoded]) -> torch.Tensor:
        """Return what the parity gate compares, in fp32: what `comparable` returns, for inputs that are known."""
        return self.comparable(outputs, batch)

    def answer(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> list[object]:
        """Return one answer, or NotFinite, per input, in order. Arguments are those of `begin`."""
        return self.begin(outputs, batch, inputs)()

    def begin(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> Answers:
        """Reduce the outputs on their device, start the download, and return what waits for it and gives the answers.

        A task that waits for the GPU here, and not only in what it returns, sets `ahead` to 1. What is returned
        should hold no tensors of the device: the next micro-batch can have their memory.

        Args:
            outputs: of the engine: (N, labels), (T, hidden), (T, labels), (M, vocabulary) or (N, vocabulary), on the
                device.
            batch: N texts with T tokens together, M of them selected.
            inputs: (N,), in the order of the batch.
        """
        raise NotImplementedError
