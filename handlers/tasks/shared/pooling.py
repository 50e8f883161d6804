"""How the token vectors of a text become one embedding."""

from __future__ import annotations

from dataclasses import dataclass

POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@dataclass(frozen=True)
class Pooling:
    """How the token vectors of a text become one embedding; names are those of sentence-transformers' config.

    Attributes:
        modes: A list of "cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean" and "lasttoken". Each mode gives
            one vector per text. Several vectors are concatenated in this order.
        normalize: Scale each embedding to length 1.
        include_prompt: Pool the tokens of a prompt too. If false, the vectors of the special tokens before the text
            and of the prompt are left out, as sentence-transformers does it for checkpoints such as INSTRUCTOR.

    Raises:
        ValueError: `modes` is empty or holds an unknown name.
    """

    modes: tuple[str, ...] = ("mean",)
    normalize: bool = False
    include_prompt: bool = True

    def __post_init__(self) -> None:
        unknown = [mode for mode in self.modes if mode not in POOLINGS]
        if unknown or not self.modes:
            raise ValueError(f"modes {list(self.modes)}; wanted: one or more of {', '.join(POOLINGS)}")
