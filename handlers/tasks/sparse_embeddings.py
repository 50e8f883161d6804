"""The task "sparse-embeddings": a weight for each token of the vocabulary, most of them zero, as SPLADE has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handlers.encoder.packing import TokenBatch
from handlers.protocol import encodings
from handlers.protocol.errors import NotFinite, PayloadTooLarge
from handlers.protocol.json_values import JsonValue
from handlers.protocol.options import whole_number
from handlers.tasks.shared.embeddings import significant
from handlers.tasks.shared.head import Head
from handlers.tasks.shared.sparse_pooling import SparsePooling
from handlers.tasks.shared.task import Answers, Archive, Input, TextTask
from handlers.transfers import Download

HEAD = Head("AutoModelForMaskedLM", (), output="logits", rows="token", pools_logits=True)
OPTIONS = ("max_active_dims",)
MAX_VALUES = 400_000  # of one request's answer: about 14 MB of JSON


class SparseVector(JsonValue):
    """One text's values above zero.

    Args:
        indices: (k,) token ids, ascending.
        values: (k,) fp32.
    """

    def __init__(self, indices: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        self.indices, self.values = indices, values

    def __len__(self) -> int:
        return len(self.indices)

    def as_json(self) -> object:
        """Return the form of text-embeddings-inference."""
        pairs = zip(self.indices.tolist(), self.values, strict=True)
        return [{"index": index, "value": value} for index, value in pairs]

    def largest(self, count: int) -> SparseVector:
        """Return the largest `count` values; of equal ones those of lower index. 0 returns all."""
        if not 0 < count < len(self):
            return self
        kept = np.sort(np.argsort(-self.values, kind="stable")[:count])
        return SparseVector(self.indices[kept], self.values[kept])


class SparseEmbeddings(TextTask):
    """Answers with the values above zero of each text.

    Args:
        pooling: of the archive.
        vocabulary: values of a whole embedding.
        digits: significant decimal digits of a value in JSON.
    """

    reads_offsets = False
    ahead = 1  # how many values are above zero is known when the GPU has counted them: `nonzero` waits for it

    def __init__(self, pooling: SparsePooling, vocabulary: int, digits: int = encodings.DIGITS["fp32"]) -> None:
        self.pooling, self.digits = pooling, digits
        self.options = {"max_active_dims": whole_number(1, vocabulary)}

    def check_answers(self, answers: Sequence[object]) -> None:
        """Raises PayloadTooLarge if a request's answers hold too many values together."""
        values = sum(len(answer) for answer in answers if isinstance(answer, SparseVector))
        if values > MAX_VALUES:
            raise PayloadTooLarge(
                f"the request's {len(answers)} sparse embeddings have {values} values above zero; at most "
                f"{MAX_VALUES} are sent for one request: send fewer texts, or ask for fewer values with "
                "max_active_dims"
            )

    def begin(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> Answers:
        above = outputs > 0  # (N, vocabulary)
        rows, columns = above.nonzero(as_tuple=True)  # text by text
        values = significant(outputs[rows, columns].float(), self.digits)
        download = Download(outputs.isfinite().all(dim=1), above.sum(dim=1).cumsum(0), columns, values)
        return lambda: self._answers(inputs, *download.arrays())

    def _answers(
        self,
        inputs: Sequence[Input],
        finite: NDArray[np.bool_],
        ends: NDArray[np.int64],
        columns: NDArray[np.int64],
        values: NDArray[np.float32],
    ) -> list[object]:
        """Return the answers of N texts.

        Args:
            finite: (N,), whether all of a text's values are.
            ends: (N,), where each text's values end in the two following.
            columns, values: of the values above zero, text by text.
        """
        vectors = map(SparseVector, np.split(columns, ends[:-1]), np.split(values, ends[:-1]))
        return [
            vector.largest(self._count(options)) if good else NotFinite()
            for vector, good, (_, options) in zip(vectors, finite.tolist(), inputs, strict=True)
        ]

    def _count(self, options: Mapping[str, Any]) -> int:
        return int(options.get("max_active_dims", self.pooling.max_active_dims))


def make(archive: Archive) -> TextTask:
    """Return the task of an archive."""
    vocabulary = int(archive.config["vocab_size"])
    return SparseEmbeddings(archive.settings.sparse_pooling, vocabulary, encodings.DIGITS[archive.precision])
