"""A batch's figures: 4xx and 5xx apart, outputs that are not finite, and what the server does not declare."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from handlers.image_classifier import ImageClassifier
from handlers.protocol import adapters
from handlers.protocol.context import Context
from handlers.protocol.errors import InferenceFailed, InputTooLong, NotFinite, PayloadTooLarge
from handlers.protocol.request import Request
from handlers.serving import metrics
from handlers.serving.metrics import BatchMetrics
from handlers.text_encoder import TextEncoder

DECLARED = yaml.safe_load((Path(metrics.__file__).parents[1] / "metrics.yaml").read_text(encoding="utf-8"))[
    "model_metrics"
]


class Cache:
    """TorchServe's cache of the metrics that its file declares; keeps what was reported."""

    def __init__(self, *undeclared: str) -> None:
        self.undeclared = undeclared
        self.values: dict[str, float] = defaultdict(float)

    def get_metric(self, name: str, kind: Any) -> Any:
        from ts.metrics.metric_cache_errors import MetricsCacheKeyError

        if name in self.undeclared or name not in [item["name"] for item in DECLARED[kind.value]]:
            raise MetricsCacheKeyError(name)
        return Metric(self.values, name)


class Metric:
    def __init__(self, values: dict[str, float], name: str) -> None:
        self.values, self.name = values, name

    def add_or_update(self, value: float, labels: list[str]) -> None:
        assert labels == ["fake", "Model"]
        self.values[self.name] += value


@pytest.fixture
def reported(context_for: Callable[[], Context]) -> Callable[..., dict[str, float]]:
    """reported(requests, cache) -> what a batch of these adds to the counters and histograms, the time aside."""
    pytest.importorskip("ts", reason="needs TorchServe")

    def report(requests: list[Request], cache: Cache) -> dict[str, float]:
        context = context_for()
        context.metrics = cache
        BatchMetrics(context).report(requests, sum(len(one.answers) for one in requests), time.perf_counter())
        return {name: value for name, value in cache.values.items() if name != "BatchTime"}

    return report


BATCH = [
    Request(adapters.DEFAULT, ["a"], answers=[1]),
    Request(adapters.DEFAULT, error=InputTooLong("theirs")),
    Request(adapters.DEFAULT, error=PayloadTooLarge("theirs")),
    Request(adapters.DEFAULT, ["a", "b"], error=InferenceFailed("ours"), answers=[InferenceFailed("ours"), 1]),
    Request(adapters.DEFAULT, ["a", "b", "c"], error=NotFinite(), answers=[1, NotFinite(), NotFinite()]),
    Request(adapters.DEFAULT, combine=lambda answers: {"engine": "none of these"}),
]


def test_4xx_and_5xx_are_counted_apart(
    reported: Callable[..., dict[str, float]], caplog: pytest.LogCaptureFixture
) -> None:
    assert reported(BATCH, Cache()) == {
        "BatchSize": 5,
        "BatchInputs": 6,
        "RequestsRefused": 2,
        "RequestsFailed": 2,
        "NonFiniteOutputs": 2,
    }
    assert [record.getMessage() for record in caplog.records] == [
        "the model's outputs for 2 of 6 inputs are not finite (NaN or infinity)"
    ]


def test_a_good_batch_counts_no_errors_and_logs_nothing(
    reported: Callable[..., dict[str, float]], caplog: pytest.LogCaptureFixture
) -> None:
    assert reported(BATCH[:1], Cache()) == {"BatchSize": 1, "BatchInputs": 1}
    assert reported(BATCH[-1:], Cache()) == {}
    assert caplog.text == ""


def test_what_the_server_does_not_declare_is_named_once_and_left_out(
    reported: Callable[..., dict[str, float]], caplog: pytest.LogCaptureFixture
) -> None:
    assert "RequestsFailed" not in reported(BATCH, Cache("RequestsFailed", "BatchInputs"))
    assert "not declared, so not reported: RequestsFailed, BatchInputs; point" in caplog.text


def test_without_a_server_only_the_log_is_written(
    context_for: Callable[[], Context], caplog: pytest.LogCaptureFixture
) -> None:
    BatchMetrics(context_for()).report(BATCH, 6, time.perf_counter())
    assert "2 of 6 inputs are not finite" in caplog.text


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_an_output_that_is_not_finite_is_named_in_answer_and_log(
    ask: Callable[..., list[tuple[int, Any]]],
    digits: ImageClassifier,
    minilm: TextEncoder,
    digit_files: list[tuple[bytes, str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    handler: Any = digits if kind == "images" else minilm
    good = handler.model.engine.run

    class Overflowing:
        pads, token_budget = True, 16_384

        def run(self, inputs: Any) -> torch.Tensor:
            outputs: torch.Tensor = good(inputs)
            return torch.full_like(outputs, torch.inf)

    monkeypatch.setattr(handler, "model", dataclasses.replace(handler.model, engine=Overflowing()))
    data: Any = digit_files[0][0] if kind == "images" else "a text"
    ((status, answer),) = ask(handler, [{"body": data}])
    assert (status, answer["type"]) == (500, "NotFinite")
    assert "the model's outputs for 1 of 1 inputs are not finite" in caplog.text
