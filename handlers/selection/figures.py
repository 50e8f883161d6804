"""How far an engine's outputs are from fp32, and whether that is near enough: see tolerances.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from handlers.selection.tolerances import DECIDED_MARGIN, MAX_RELATIVE_ERROR, MIN_AGREEMENT, MIN_COSINE

NOT_FINITE = "not finite"  # in place of a number that JSON does not have


@dataclass(frozen=True)
class Figure:
    """One comparison with fp32.

    value: of logits the largest relative error, of embeddings the least cosine; NaN for outputs that are not finite.
    agreement: of the likeliest class, where it counts: in fp8, whose errors may be large.
    complete: whether memory sufficed for all that was to be compared.
    """

    value: float
    precision: str
    cosine: bool = False
    agreement: float = 1.0
    complete: bool = True

    @property
    def passed(self) -> bool:
        """False for NaN."""
        if self.cosine:
            return self.value >= MIN_COSINE[self.precision]
        near = self.value <= MAX_RELATIVE_ERROR[self.precision]
        return near and self.agreement >= MIN_AGREEMENT[self.precision]

    def as_dict(self) -> dict[str, object]:
        return {"leastCosine" if self.cosine else "relativeError": json_number(self.value, 7 if self.cosine else 2)}

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"its outputs are {NOT_FINITE}"
        if self.cosine:
            return f"least cosine {self.value:.7g} against fp32; at least {MIN_COSINE[self.precision]}"
        said = f"relative error {self.value:.2g} against fp32; at most {MAX_RELATIVE_ERROR[self.precision]}"
        if self.agreement < MIN_AGREEMENT[self.precision]:
            said += f"; agreement {self.agreement:.4g}; at least {MIN_AGREEMENT[self.precision]}"
        return said


def json_number(value: float, digits: int) -> float | str:
    """The number to so many digits; words for NaN and infinity, which JSON does not have."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else NOT_FINITE


def worst(figures: Sequence[Figure]) -> Figure:
    """The one to judge all of them by: a failed one, if any, and the farthest from fp32."""

    def distance(figure: Figure) -> tuple[bool, bool, float]:
        far = 0.0 if math.isnan(figure.value) else figure.value * (-1 if figure.cosine else 1)
        return not figure.passed, math.isnan(figure.value), far

    return max(figures, key=distance)


def of_logits(logits: torch.Tensor, reference: torch.Tensor, precision: str) -> Figure:
    """Compare (N, classes) logits with those of fp32. Raises ValueError for another shape."""
    logits, reference = _alike(logits, reference)
    norms = reference.norm(dim=1)
    # A row near zero, such as the one logit of an undecided pair, is set against what logits usually are here.
    usual = norms.square().mean().sqrt()
    errors = (logits - reference).norm(dim=1) / torch.maximum(norms, usual)
    value = float(errors.max()) if logits.isfinite().all() else math.nan
    return Figure(value, precision, agreement=_agreement(logits, reference) if precision == "fp8" else 1.0)


def of_embeddings(embeddings: torch.Tensor, reference: torch.Tensor, precision: str) -> Figure:
    """Compare (N, K) embeddings with those of fp32. Raises ValueError for another shape."""
    embeddings, reference = _alike(embeddings, reference)
    least = float(F.cosine_similarity(embeddings.double(), reference.double(), dim=1).min())
    return Figure(least if embeddings.isfinite().all() else math.nan, precision, cosine=True)


def _alike(outputs: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if outputs.shape != reference.shape:
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} came; wanted: {tuple(reference.shape)}")
    return outputs.float(), reference.float().to(outputs.device)


def _agreement(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Share of rows that fp32 decides and that have the same likeliest class."""
    if reference.shape[1] == 1:
        return 1.0
    first, second = reference.softmax(dim=1).topk(2, dim=1).values.T
    decided = first - second >= DECIDED_MARGIN
    same = (logits.argmax(dim=1) == reference.argmax(dim=1))[decided]
    return float(same.float().mean()) if len(same) else 1.0
