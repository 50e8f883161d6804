"""How the logits of a text's tokens become one sparse embedding, as SPLADE has it."""

from __future__ import annotations

from dataclasses import dataclass

STRATEGIES = ("max", "sum")
ACTIVATIONS = ("relu", "log1p_relu")


@dataclass(frozen=True)
class SparsePooling:
    """How token logits become a sparse embedding; names are those of sentence-transformers' SpladePooling.

    Attributes:
        strategy: "max" takes the largest value of all tokens, "sum" their sum. Tokens that the tokenizer adds count.
        activation: "relu" makes log(1 + relu(x)) of each logit. "log1p_relu" takes log(1 + x) once more.
        max_active_dims: The largest number of values in an answer; the largest values are kept. 0 keeps all. A
            request may ask for another number.

    Raises:
        ValueError: A value is unknown, or below 0.
    """

    strategy: str = "max"
    activation: str = "relu"
    max_active_dims: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy is {self.strategy!r}; wanted: {', '.join(STRATEGIES)}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; wanted: {', '.join(ACTIVATIONS)}")
        if self.max_active_dims < 0:
            raise ValueError(f"maxActiveDims is {self.max_active_dims}; wanted: 0 or more")
