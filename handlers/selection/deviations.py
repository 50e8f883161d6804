"""How far an engine's outputs are from fp32, and whether that is near enough (see tolerances.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from handlers.selection.tolerances import DECIDED_MARGIN, MAX_RELATIVE_ERROR, MIN_AGREEMENT, MIN_COSINE

NOT_FINITE = "not finite"  # stands for NaN and infinity, which JSON does not have


@dataclass(frozen=True)
class Deviation:
    """The result of one comparison with fp32.

    Args:
        value: the largest relative error of logits, or the least cosine of embeddings. NaN if outputs are not finite.
        precision: that the engine ran in.
        cosine: True if `value` is a cosine.
        agreement: share of samples with the same likeliest class. Computed in fp8 only, whose errors may be large.
        complete: False if memory did not suffice for some of the batches.
    """

    value: float
    precision: str
    cosine: bool = False
    agreement: float = 1.0
    complete: bool = True

    @property
    def passed(self) -> bool:
        """Whether the outputs are near enough. False for NaN."""
        if self.cosine:
            return self.value >= MIN_COSINE[self.precision]
        near = self.value <= MAX_RELATIVE_ERROR[self.precision]
        return near and self.agreement >= MIN_AGREEMENT[self.precision]

    def as_dict(self) -> dict[str, object]:
        """Return what the model's description shows."""
        return {"leastCosine" if self.cosine else "relativeError": json_number(self.value, 7 if self.cosine else 2)}

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"its outputs are {NOT_FINITE}"
        if self.cosine:
            return f"least cosine {self.value:.7g} against fp32; at least {MIN_COSINE[self.precision]}"
        text = f"relative error {self.value:.2g} against fp32; at most {MAX_RELATIVE_ERROR[self.precision]}"
        if self.agreement < MIN_AGREEMENT[self.precision]:
            text += f"; agreement {self.agreement:.4g}; at least {MIN_AGREEMENT[self.precision]}"
        return text


def json_number(value: float, digits: int) -> float | str:
    """Round to `digits` significant digits; NaN and infinity become words."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else NOT_FINITE


def worst(deviations: Sequence[Deviation]) -> Deviation:
    """Return the deviation that decides: one that did not pass, if any, and of those the farthest from fp32."""

    def distance(deviation: Deviation) -> tuple[bool, bool, float]:
        far = 0.0 if math.isnan(deviation.value) else deviation.value * (-1 if deviation.cosine else 1)
        return not deviation.passed, math.isnan(deviation.value), far

    return max(deviations, key=distance)


def of_logits(logits: torch.Tensor, reference: torch.Tensor, precision: str) -> Deviation:
    """Compare logits with those of fp32: the norm of the difference over the reference's norm, of the worst row.

    Args:
        logits: (N, classes), of any floating dtype.
        reference: (N, classes) fp32.
        precision: that the logits were computed in.

    Raises:
        ValueError: if the shapes differ.
    """
    logits, reference = _as_fp32(logits, reference)
    norms = reference.norm(dim=1)
    # A row near zero, such as the only logit of an undecided pair, is divided by the root mean square of all norms.
    usual = norms.square().mean().sqrt()
    errors = (logits - reference).norm(dim=1) / torch.maximum(norms, usual)
    value = float(errors.max()) if logits.isfinite().all() else math.nan
    return Deviation(value, precision, agreement=_agreement(logits, reference) if precision == "fp8" else 1.0)


def of_embeddings(embeddings: torch.Tensor, reference: torch.Tensor, precision: str) -> Deviation:
    """Compare embeddings with those of fp32 by their least cosine.

    Args:
        embeddings: (N, K), of any floating dtype.
        reference: (N, K) fp32.
        precision: that the embeddings were computed in.

    Raises:
        ValueError: if the shapes differ.
    """
    embeddings, reference = _as_fp32(embeddings, reference)
    cosines = F.cosine_similarity(embeddings.double(), reference.double(), dim=1)  # (N,)
    empty = ~(embeddings.any(dim=1) | reference.any(dim=1))  # a sparse embedding may have no value above zero
    least = float(torch.where(empty, 1.0, cosines).min())
    return Deviation(least if embeddings.isfinite().all() else math.nan, precision, cosine=True)


def _as_fp32(outputs: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both in fp32 on the outputs' device. Raises ValueError if the shapes differ."""
    if outputs.shape != reference.shape:
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} came; wanted: {tuple(reference.shape)}")
    return outputs.float(), reference.float().to(outputs.device)


def _agreement(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the share of rows with the same likeliest class, among rows that fp32 decides."""
    if reference.shape[1] == 1:
        return 1.0
    first, second = reference.softmax(dim=1).topk(2, dim=1).values.T
    decided = first - second >= DECIDED_MARGIN
    same = (logits.argmax(dim=1) == reference.argmax(dim=1))[decided]
    return float(same.float().mean()) if len(same) else 1.0
