"""The parity gate: compares what an archive computes in each precision with the fp32 outputs of its checkpoint.

handlers/selection/tolerances.py holds the limits and says what they apply to.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from handlers.selection.tolerances import DECIDED_MARGIN, MAX_RELATIVE_ERROR, MIN_AGREEMENT, MIN_COSINE

PRECISIONS = ("fp32", "fp16", "bf16")

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ParityResult:
    """How one precision compares with fp32. Values that do not apply to the kind of output are None.

    Attributes:
        passed: whether all limits are kept.
        samples: rows that were compared.
        device: what the archive ran on; "none" if it did not run.
        max_relative_error: of the logits, of the worst sample.
        agreement: share of decided samples whose likeliest class is the same as in fp32.
        decided: samples for which fp32 has one class clearly before the next.
        min_cosine: of embeddings, of the worst sample.
        problem: why nothing could be compared.
        engine: the engine that ran.
    """

    passed: bool
    samples: int
    device: str
    max_relative_error: float | None = None
    agreement: float | None = None
    decided: int | None = None
    min_cosine: float | None = None
    problem: str | None = None
    engine: str | None = None

    def as_dict(self) -> dict[str, object]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        if self.min_cosine is not None:
            figures = f"least cosine {self.min_cosine:.7f}"
        elif self.agreement is not None:
            figures = f"relative error {self.max_relative_error:.1e}, {self._same(self.agreement, self.decided or 0)}"
        else:
            figures = str(self.problem)
        return f"{'passed' if self.passed else 'FAILED'}: {figures}"

    def _same(self, agreement: float, decided: int) -> str:
        """Return in words for how many samples the likeliest class is that of fp32."""
        ties = self.samples - decided
        left_out = f"; {ties} near tie{'s' if ties > 1 else ''} left out" if ties else ""
        if not decided:
            return f"no likeliest class to compare{left_out}"
        which = " samples whose answer is not nearly a tie" if ties else " samples"
        return f"same likeliest class as fp32 for {round(agreement * decided)} of {decided}{which}{left_out}"


def did_not_run(reason: str, samples: int) -> ParityResult:
    """Return the result for a precision in which the network does not run at all. reason: what it raised."""
    return ParityResult(False, samples, "none", problem=f"it does not run: {reason}")


def compare_decoders(on_gpu: Array, on_cpu: Array, precision: str, embeddings: bool, device: str) -> ParityResult:
    """Compare the outputs for JPEGs that the GPU has decoded with those for the same files decoded by the CPU.

    Both ran in the same precision. The decoders' pixels differ by rounding, so in fp32 the limits are those of fp16.

    Args: as of `compare`; the reference is what the CPU decoded.
    """
    if not np.isfinite(on_cpu).all():
        return ParityResult(False, len(on_cpu), device, problem="the outputs of what the CPU decoded are not finite")
    return compare(on_gpu, on_cpu, "fp16" if precision == "fp32" else precision, embeddings, device)


def compare(outputs: Array, reference: Array, precision: str, embeddings: bool, device: str) -> ParityResult:
    """Compare an archive's outputs with the reference.

    Args:
        outputs: (N, K) fp32 logits or embeddings of the archive.
        reference: (N, K) fp32 outputs of the checkpoint for the same samples.
        precision: that the archive ran in; it decides the limits.
        embeddings: whether the rows are embeddings, which are compared by cosine.
        device: that the archive ran on, for the result.
    """
    count = len(reference)
    if outputs.shape != reference.shape:
        return ParityResult(False, count, device, problem=f"shape {outputs.shape} against {reference.shape}")
    if not np.isfinite(reference).all():
        return ParityResult(False, count, device, problem="the fp32 reference itself is not finite")
    if not np.isfinite(outputs).all():
        broken = int((~np.isfinite(outputs).all(axis=1)).sum())
        return ParityResult(False, count, device, problem=f"{broken} of {count} outputs are not finite (overflow)")
    if embeddings:
        cosine = float(cosines(outputs, reference).min())
        return ParityResult(cosine >= MIN_COSINE[precision], count, device, min_cosine=cosine)
    error = float(relative_errors(outputs, reference).max())
    same, decided = agreement(outputs, reference)
    if precision == "fp8" and not decided:  # the errors that fp8 is allowed say too little by themselves
        problem = f"fp32 decides none of the {count} samples by {DECIDED_MARGIN:.0%}: agreement says nothing of fp8"
        return ParityResult(False, count, device, problem=problem)
    passed = error <= MAX_RELATIVE_ERROR[precision] and same >= MIN_AGREEMENT[precision]
    return ParityResult(passed, count, device, max_relative_error=error, agreement=same, decided=decided)


def cosines(a: Array, b: Array) -> NDArray[np.float64]:
    """Return (N,): the cosine between each row of a (N, K) and the same row of b (N, K); 1 for two zero rows."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosine: NDArray[np.float64] = (left * right).sum(axis=1) / np.maximum(norms, 1e-30)
    cosine[~(left.any(axis=1) | right.any(axis=1))] = 1
    return cosine


def relative_errors(outputs: Array, reference: Array) -> NDArray[np.float64]:
    """Return (N,): the norm of each row's difference, divided by the norm of the reference's row."""
    difference = outputs.astype(np.float64) - reference
    errors: NDArray[np.float64] = np.linalg.norm(difference, axis=1) / np.maximum(
        np.linalg.norm(reference.astype(np.float64), axis=1), 1e-30
    )
    return errors


def agreement(outputs: Array, reference: Array) -> tuple[float, int]:
    """Return the share of decided rows whose likeliest class is the same, and how many rows are decided."""
    if reference.shape[1] == 1:
        return 1.0, len(reference)
    shifted = np.exp(reference - reference.max(axis=1, keepdims=True))
    probabilities = np.sort(shifted / shifted.sum(axis=1, keepdims=True), axis=1)
    decided = probabilities[:, -1] - probabilities[:, -2] >= DECIDED_MARGIN
    if not decided.any():
        return 1.0, 0
    same = outputs.argmax(axis=1)[decided] == reference.argmax(axis=1)[decided]
    return float(same.mean()), int(decided.sum())
