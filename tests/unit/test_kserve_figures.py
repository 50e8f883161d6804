"""Figures of a model behind KServe's server have TorchServe's names and labels."""

from __future__ import annotations

import pytest

prometheus_client = pytest.importorskip("prometheus_client")
from kserve_host.figures import Figures, labels  # noqa: E402


def test_labels_are_those_that_handlers_declare() -> None:
    found = labels()
    assert found["BatchSize_bucket"] == ["ModelName", "ModelVersion", "Level", "le"]
    assert "RequestsRefused" in found


def test_counters_add_and_gauges_are_set() -> None:
    figures = Figures()
    bucket, memory = figures.metric("BatchSize_bucket", "COUNTER"), figures.metric("WorkerMemory", "GAUGE")
    assert bucket is not None
    assert memory is not None
    for value in (1, 2):
        bucket.add_or_update(value, ["digits", "1.0", "Model", "8"])
        memory.add_or_update(value, ["digits", "1.0", "Model", "W-1-digits_1.0"])
    shown = prometheus_client.generate_latest().decode()
    assert 'BatchSize_bucket{Level="Model",ModelName="digits",ModelVersion="1.0",le="8"} 3.0' in shown
    assert 'WorkerName="W-1-digits_1.0"} 2.0' in shown
    assert figures.metric("Unknown", "COUNTER") is None
    assert figures.metric("BatchSize_bucket", "COUNTER") is bucket
