"""Ask two versions of a model the same, and compare their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ready import Sample
from server.client import Client, refusal
from server.errors import ServerError
from serving_bench.answer_comparison import agree, difference

ANSWERS, LABELS = "answers", "labels"


@dataclass(frozen=True)
class Comparison:
    """asked: samples that the old version answered. differences: what differs, in words, one entry per sample."""

    asked: int
    differences: Sequence[str]


def compare(client: Client, model: str, old: str, new: str, samples: Sequence[Sample], by: str) -> Comparison:
    """Ask both versions all samples.

    A sample that the old version refuses with a 4xx is left out if the new one refuses it too.

    Args:
        client: of the server.
        model, old, new: the versions to ask.
        samples: what to ask.
        by: ANSWERS (labels with their scores, vectors by direction) or LABELS (the likeliest label alone).

    Raises ServerError if the new version fails, OSError if nobody answers.
    """
    asked, differences = 0, list[str]()
    for index, sample in enumerate(samples, 1):
        before, after = (client.predict(model, *sample, path=f"/{version}") for version in (old, new))
        if after.status >= 500:
            raise ServerError(f"{model} {new} fails on sample {index} of {len(samples)}: {refusal(after)}")
        if before.status != 200 and after.status != 200:
            continue
        asked += 1
        reason = f"{before.status} before, {after.status} now" if before.status != after.status else None
        reason = reason or _differs(after.body, before.body, by)
        if reason:
            differences.append(f"sample {index}: the answer {reason}")
    return Comparison(asked, differences)


def _differs(found: bytes, wanted: bytes, by: str) -> str | None:
    if by == ANSWERS:
        return difference(found, wanted)
    return None if agree(found, wanted) else "has another label first, or another direction"
