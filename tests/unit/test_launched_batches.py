"""Batches that no graph holds run on the stream of the graphs, whose cuBLAS workspace is there already."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from handlers.encoder.packing import TokenBatch
from handlers.engines import fused

CPU = torch.device("cpu")


class Model:
    """Stands in for a PackedModel: returns the ids, and notes the stream that it ran on."""

    def __init__(self, streams: list[str]) -> None:
        self.streams = streams
        self.ran: list[tuple[int, str]] = []

    def hidden(self, ids: torch.Tensor, types: torch.Tensor, segments: Any) -> torch.Tensor:
        assert ids.shape == types.shape
        assert int(segments.cu_seqlens[-1]) == len(ids)
        self.ran.append((len(ids), self.streams[-1]))
        return ids.unsqueeze(1)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The streams that are current, the innermost last."""
    current = ["the current one"]

    @contextlib.contextmanager
    def on_side_stream(stream: str) -> Iterator[None]:
        current.append(stream)
        try:
            yield
        finally:
            current.pop()

    monkeypatch.setattr(fused, "capture_stream", lambda device: f"the graphs' on {device}")
    monkeypatch.setattr(fused, "on_side_stream", on_side_stream)
    return current


def test_a_batch_without_a_graph_runs_on_the_stream_of_the_graphs(streams: list[str]) -> None:
    model = Model(streams)
    batch = TokenBatch.pack([[5, 6, 7], [8]], [[0, 0, 0], [0]], CPU)
    hidden = fused.Graphed(model, CPU).hidden(batch)
    assert hidden.squeeze(1).tolist() == [5, 6, 7, 8]
    assert model.ran == [(4, "the graphs' on cpu")]
    assert streams == ["the current one"]


def test_so_do_the_large_ones_at_load(streams: list[str]) -> None:
    model, largest = Model(streams), fused.GRAPH_TOKENS[-1]
    fused.Graphed(model, CPU).compile_larger()
    assert model.ran == [(largest + 64, "the graphs' on cpu"), (largest + 1, "the graphs' on cpu")]
