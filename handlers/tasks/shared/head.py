"""What a task reads from a network, and which checkpoints are made for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class Head:
    """The network that a task needs, in transformers' words. Everything that differs by task is read from here.

    Args:
        auto_model: name of transformers' class that builds the network with the task's head.
        architectures: how class names in config.json's `architectures` end that are made for the task.
        output: field of the network's output that the task reads.
        rows: what one row of it belongs to: a text, a token, or a masked token.
        has_labels: whether config.json's id2label names the columns of the output.
        pools_logits: whether engines make one row per text of the tokens' logits, as SparsePooling says.
    """

    auto_model: str
    architectures: tuple[str, ...]
    output: Literal["logits", "last_hidden_state"]
    rows: Literal["text", "token", "mask"]
    has_labels: bool = False
    pools_logits: bool = False

    @property
    def is_embedding(self) -> bool:
        """Whether the task pools token vectors, and so reads from a network without a head."""
        return self.output == "last_hidden_state"

    @property
    def gives_vectors(self) -> bool:
        """Whether the task's answers are vectors, dense or sparse, which are compared by their cosine."""
        return self.is_embedding or self.pools_logits

    def read(self, outputs: Any, is_masked: torch.Tensor) -> torch.Tensor:
        """Return what the task reads of one text's outputs: (1, labels), (T, hidden or labels) or (M, vocabulary).

        Args:
            outputs: of the transformers model, for a batch of one text.
            is_masked: (T,) bool, which tokens are the tokenizer's mask.
        """
        found: torch.Tensor = getattr(outputs, self.output)
        if self.rows == "text":
            return found
        return found[0][is_masked] if self.rows == "mask" else found[0]
