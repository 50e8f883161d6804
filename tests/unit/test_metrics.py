"""A worker's figures: 4xx and 5xx apart, outputs that are not finite, histograms, and what is not declared."""

from __future__ import annotations

import dataclasses
import sys
import threading
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
from handlers.serving import metrics, worker
from handlers.serving.metrics import BatchMetrics
from handlers.serving.steps import Steps
from handlers.text_encoder import TextEncoder

DECLARED = yaml.safe_load((Path(metrics.__file__).parents[1] / "metrics.yaml").read_text(encoding="utf-8"))[
    "model_metrics"
]


class Cache:
    """TorchServe's cache of the metrics that its file declares; keeps what was reported, by name and own labels."""

    def __init__(self, *undeclared: str) -> None:
        self.undeclared = undeclared
        self.values: dict[str, float] = defaultdict(float)
        self.lines = 0

    def get_metric(self, name: str, kind: Any) -> Any:
        from ts.metrics.metric_cache_errors import MetricsCacheKeyError

        for item in DECLARED[kind.value]:
            if item["name"] == name and name not in self.undeclared:
                return Metric(self, item)
        raise MetricsCacheKeyError(name)


class Metric:
    def __init__(self, cache: Cache, declared: dict[str, Any]) -> None:
        self.cache, self.declared = cache, declared

    def add_or_update(self, value: float, labels: list[str]) -> None:
        assert len(labels) == len(self.declared["dimensions"])
        assert labels[:3] == ["fake", "2.0", "Model"]
        assert all(label and not set(label) & set(",:|#[]\n ") for label in labels)
        self.cache.values[" ".join([self.declared["name"], *labels[3:]])] += value
        self.cache.lines += 1


@pytest.fixture
def context(context_for: Callable[[], Any]) -> Any:
    pytest.importorskip("ts", reason="needs TorchServe")
    made = context_for()
    made.manifest = {"model": {"modelVersion": "2.0"}}
    made.metrics = Cache()
    return made


@pytest.fixture
def started(context: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., BatchMetrics]:
    """started(undeclared metrics) -> the metrics of a worker that has reported its zeros; the test flushes on."""
    monkeypatch.setattr(BatchMetrics, "_report_for_ever", lambda made: None)

    def start(*undeclared: str) -> BatchMetrics:
        context.metrics = Cache(*undeclared)
        made = BatchMetrics(context)
        made.start()
        return made

    return start


def steps_of(**ms: float) -> Steps:
    steps = Steps()
    steps.spans = {name: (0, int(value * 1e6)) for name, value in ms.items()}
    return steps


def reported(made: BatchMetrics, cache: Cache, requests: list[Request]) -> dict[str, float]:
    """What a batch of these adds to the counters, and to the sums of histograms without times."""
    before = dict(cache.values)
    made.report(requests, sum(len(one.answers) for one in requests), steps_of())
    made.flush()
    after = {name: value - before.get(name, 0) for name, value in cache.values.items()}
    return {
        name: value
        for name, value in after.items()
        if value and "Time" not in name and not name.split()[0].endswith(("_bucket", "_count"))
    }


BATCH = [
    Request(adapters.DEFAULT, ["a"], answers=[1]),
    Request(adapters.DEFAULT, error=InputTooLong("theirs")),
    Request(adapters.DEFAULT, error=PayloadTooLarge("theirs")),
    Request(adapters.DEFAULT, ["a", "b"], error=InferenceFailed("ours"), answers=[InferenceFailed("ours"), 1]),
    Request(adapters.DEFAULT, ["a", "b", "c"], error=NotFinite(), answers=[1, NotFinite(), NotFinite()]),
    Request(adapters.DEFAULT, combine=lambda answers: {"engine": "none of these"}),
]


def test_4xx_and_5xx_are_counted_apart(
    started: Callable[..., BatchMetrics], context: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert reported(started(), context.metrics, BATCH) == {
        "BatchSize_sum": 5,
        "BatchInputs_sum": 6,
        "RequestsRefused": 2,
        "RequestsFailed": 2,
        "RequestErrors 400 InputTooLong": 1,
        "RequestErrors 413 PayloadTooLarge": 1,
        "RequestErrors 500 InferenceFailed": 1,
        "RequestErrors 500 NotFinite": 1,
        "NonFiniteOutputs": 2,
    }
    assert [record.getMessage() for record in caplog.records] == [
        "the model's outputs for 2 of 6 inputs are not finite (NaN or infinity)"
    ]


def test_a_good_batch_counts_no_errors_and_logs_nothing(
    started: Callable[..., BatchMetrics], context: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made = started()
    assert reported(made, context.metrics, BATCH[:1]) == {"BatchSize_sum": 1, "BatchInputs_sum": 1}
    assert reported(made, context.metrics, BATCH[-1:]) == {}
    assert caplog.text == ""


def test_what_the_server_does_not_declare_is_named_once_and_left_out(
    started: Callable[..., BatchMetrics], context: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made = started("RequestsFailed", "BatchInputs_sum", "WorkerMemory")
    assert "RequestsFailed" not in reported(made, context.metrics, BATCH)
    assert "not declared, so not reported: RequestsFailed, BatchInputs_sum, WorkerMemory; point" in caplog.text


def test_without_a_server_only_the_log_is_written(
    context_for: Callable[[], Context], caplog: pytest.LogCaptureFixture
) -> None:
    made = BatchMetrics(context_for())
    made.start()
    made.report(BATCH, 6, Steps())
    made.flush()
    assert "2 of 6 inputs are not finite" in caplog.text


def test_all_that_rules_divide_by_is_there_before_the_first_request(
    started: Callable[..., BatchMetrics], context: Any
) -> None:
    """rate() and increase() do not see the first step of a counter that appears with it."""
    started()
    shown = context.metrics.values
    for name in ("RequestsRefused", "RequestsFailed", "NonFiniteOutputs", "TokensUsed", "TokensComputed"):
        assert shown[name] == 0
    assert "StepTime_bucket run 0.5" in shown
    assert "StepTime_bucket write +Inf" in shown
    assert "BatchSize_bucket 256" in shown
    assert not any(value for name, value in shown.items() if not name.startswith("Worker"))
    assert context.metrics.lines < 150


def test_buckets_hold_what_prometheus_expects(started: Callable[..., BatchMetrics], context: Any) -> None:
    made, values = started(), context.metrics.values
    for ms in (0.2, 2.5, 3, 70_000):
        made.report(BATCH[:1], 1, steps_of(run=ms))
    made.flush()
    found = {bound: values[f"StepTime_bucket run {bound}"] for bound in ("0.5", "1", "2.5", "5", "60000", "+Inf")}
    assert found == {"0.5": 1, "1": 1, "2.5": 2, "5": 3, "60000": 3, "+Inf": 4}
    assert (values["StepTime_count run"], values["StepTime_sum run"]) == (4, 70_005.7)
    assert values["StepTime_count prepare"] == 0
    assert [values[f"BatchSize_bucket {bound}"] for bound in ("1", "256", "+Inf")] == [4, 4, 4]


def test_tokens_are_counted_with_and_without_padding(started: Callable[..., BatchMetrics], context: Any) -> None:
    made = started()
    made.count_tokens([10, 7, 3], pads=True)
    made.count_tokens([10, 7, 3], pads=False)
    made.flush()
    assert (context.metrics.values["TokensUsed"], context.metrics.values["TokensComputed"]) == (40, 50)


def test_what_a_first_run_counts_is_dropped(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchMetrics, "_report_for_ever", lambda made: None)
    made = BatchMetrics(context)
    made.count_tokens([10], pads=False)
    made.start()
    assert context.metrics.values["TokensUsed"] == 0


def test_a_worker_says_what_serves_and_how_much_memory_it_has(
    started: Callable[..., BatchMetrics], context: Any, minilm: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["worker", "--sock-type", "unix", "--sock-name", "/a/.ts.sock.9003"])
    monkeypatch.setattr(worker, "gpu_memory", lambda: 123)
    made = BatchMetrics(context, minilm.model)
    made.start()
    name = "W-9003-fake_2.0"
    assert abs(context.metrics.values[f"WorkerSeen {name} {made.worker.engine} fp32 cpu"] - time.time()) < 9
    assert made.worker.engine in ("fused", "onnxruntime", "torch_eager")
    assert 10e6 < context.metrics.values[f"WorkerMemory {name}"] < 100e9
    assert context.metrics.values[f"WorkerGPUMemory {name} cpu"] == 123
    lines = context.metrics.lines
    made.flush()
    assert context.metrics.lines == lines  # not with every report


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("cuda:0", "cuda_0"),
        ("a, b|c#d", "a_b_c_d"),
        ("", "unknown"),
        (None, "unknown"),
        ("torch_eager", "torch_eager"),
    ],
)
def test_labels_have_nothing_that_torchserve_takes_for_its_own(value: object, wanted: str) -> None:
    assert worker.label(value) == wanted


def test_reports_go_on_by_themselves_and_survive_a_failure(
    context: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metrics, "REPORT_S", 0.01)
    made = BatchMetrics(context)
    made.start()
    flush = made.flush
    monkeypatch.setattr(made, "flush", lambda: 1 / 0)
    made.report(BATCH[:1], 1, Steps())
    assert within(lambda: "reporting metrics failed" in caplog.text)
    monkeypatch.setattr(made, "flush", flush)
    made.report(BATCH[:1], 1, Steps())
    assert within(lambda: context.metrics.values["BatchSize_sum"] == 2)


def within(done: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)
    return done()


def test_many_threads_lose_nothing(started: Callable[..., BatchMetrics], context: Any) -> None:
    made = started()

    def work() -> None:
        for _ in range(500):
            made.report(BATCH[:1], 1, steps_of(run=1))
            made.flush()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.flush()
    assert context.metrics.values["BatchSize_sum"] == 2000
    assert context.metrics.values["StepTime_count run"] == 2000


def test_a_batch_costs_microseconds(started: Callable[..., BatchMetrics]) -> None:
    """12 us were measured; the bound leaves room for machines that are slow or busy."""
    made, batch = started(), [Request(adapters.DEFAULT, ["a"], answers=[1])] * 8
    steps = steps_of(read=1, prepare=2, run=3, write=1)
    best = min(_time(lambda: made.report(batch, 8, steps)) for _ in range(5))
    assert best < 200e-6


def _time(work: Callable[[], object], times: int = 200) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - begin) / times


def test_steps_measure_also_what_fails() -> None:
    steps = Steps()
    with steps("read"):
        time.sleep(0.002)
    with pytest.raises(ValueError, match="bad"), steps("run"):
        raise ValueError("bad")
    assert list(steps.spans) == ["read", "run"]
    assert 2 <= steps.ms()["read"] < 1000
    assert steps.spans["read"][1] <= steps.spans["run"][0] <= steps.elapsed_ns()


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
