"""TorchServe's metrics: parse the text of the metrics port, and compare two readings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_SAMPLE = re.compile(r"^(?P<name>\w+)\{(?P<labels>[^}]*)\}\s+(?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
MODEL_LABELS = ("ModelName", "model_name")


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """The name, labels and value of each sample that has labels."""
    for line in text.splitlines():
        found = _SAMPLE.match(line)
        if found:
            yield found["name"], dict(_LABEL.findall(found["labels"])), float(found["value"])


def of_model(text: str, model: str) -> dict[str, float]:
    """The samples of one model by name, summed over all labels but the step, which becomes a part of the name.

    `StepTime_sum{Step="read"}` is found as `StepTime.read_sum`.
    """
    found: dict[str, float] = {}
    for name, labels, value in samples(text):
        if model in (labels.get(label) for label in MODEL_LABELS):
            if step := labels.get("Step"):
                histogram, _, kind = name.rpartition("_")
                name = f"{histogram}.{step}_{kind}"
            found[name] = found.get(name, 0.0) + value
    return found


@dataclass(frozen=True)
class MetricChange:
    """The change of a model's counters and histograms between two readings."""

    before: Mapping[str, float]
    after: Mapping[str, float]

    def gained(self, name: str) -> float:
        """How much a metric has grown."""
        return self.after.get(name, 0.0) - self.before.get(name, 0.0)

    def mean(self, histogram: str) -> float | None:
        """The mean of the values that a histogram gained; None if it gained none."""
        count = self.gained(f"{histogram}_count")
        return self.gained(f"{histogram}_sum") / count if count > 0 else None

    def per_request_ms(self, counter: str) -> float | None:
        """A counter of microseconds, per request that TorchServe finished, in ms; None without requests."""
        requests = self.gained("ts_inference_requests_total")
        return self.gained(counter) / requests / 1e3 if requests > 0 else None

    def histograms(self) -> list[str]:
        """Names of all histograms that gained something."""
        names = (name.removesuffix("_count") for name in self.after if name.endswith("_count"))
        return sorted(name for name in names if f"{name}_sum" in self.after and self.gained(f"{name}_count") > 0)
