"""The stages of a batch in its handler: how long each takes, and why that is not known if it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving_bench.prometheus import MetricChange

STEP = "StepTime."  # how histograms of a handler's steps are named here: StepTime.read
NAMES = {  # in the order in which a batch goes through them
    "read": "read the requests",
    "prepare": "decode or tokenize",
    "run": "network (launch and wait)",
    "write": "write the answers",
}
MEANING = {
    "read": "The protocol's form becomes inputs and options.",
    "prepare": "Images become crops; texts become token ids. If the GPU decodes JPEGs, this is mostly the launch, "
    "and the network's stage waits for the decoder.",
    "run": "Wall time of the worker from prepared inputs to finished answers: upload, launches, and the wait for the "
    "GPU, which may do other workers' work first. It is not the time that the GPU computes for this batch.",
    "write": "Answers become bytes. Numbers in JSON take the longest.",
}
NOT_NOTED = "the run did not note why"  # files of before there was a reason


def of(change: MetricChange, kind: str) -> dict[str, Any]:
    """The columns of a row. kind: of what was asked, such as "archive"."""
    names = [name for name in change.histograms() if name.startswith(STEP)]
    means = {name.removeprefix(STEP): change.mean(name) for name in names}
    found = {name: float(f"{value:.5g}") for name, value in means.items() if value is not None}
    return {"stages": found, "stages_missing": None if found else _why_missing(change, kind)}


def _why_missing(change: MetricChange, kind: str) -> str:
    if kind == "no-op":
        return "a no-op has none"
    if not change.after:
        return "this server reports no metrics, or nobody answers at its metrics port"
    if not any(name.startswith(STEP) for name in change.after):
        return (
            "its handler reports no StepTime: it is not of this project or an older one, or the server's "
            "metrics_config is not handlers/metrics.yaml"
        )
    return "no batch was reported during the point: the handlers report once per second, so take more --seconds"


def missing(row: Mapping[str, Any]) -> str | None:
    """Why a row has no stages; None if it has them, or if it is a no-op's."""
    if row.get("stages") or row["kind"] == "no-op":
        return None
    return str(row.get("stages_missing") or NOT_NOTED)
