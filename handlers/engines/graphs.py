"""CUDA graphs: one launch instead of hundreds, which take most of a small batch's time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # batch sizes that graphs are captured for


def bucket_of(count: int, buckets: tuple[int, ...] = BUCKETS) -> int:
    """Return the smallest bucket that holds `count` rows. Raises ValueError if the largest is smaller."""
    for bucket in buckets:
        if count <= bucket:
            return bucket
    raise ValueError(f"{count} rows came; the largest bucket is {buckets[-1]}")


def sizes_up_to(most: int) -> list[int]:
    """Return the smallest and the largest batch of every bucket up to `most` rows: 1, 2, 3, 4, 5, 8, 9, 16, 17, ...

    Between those two an engine that pads takes as long as for the larger; any other takes time in proportion.
    """
    most = min(most, BUCKETS[-1])
    edges = {1, most, *BUCKETS, *(bucket + 1 for bucket in BUCKETS)}
    return sorted(size for size in edges if size <= most)


@contextlib.contextmanager
def on_side_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """Launch on `stream`, in order with the current stream: after its earlier work and before its later work."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        current.wait_stream(stream)


@functools.cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of `device` that all graphs are captured on.

    cuBLAS keeps a workspace of 32 MB per stream, so a new stream for each graph would take a gigabyte in the end.
    """
    return torch.cuda.Stream(device)


class SharedOutput:
    """A buffer that several graphs write their outputs into, from its first row on. Read it before the next replay.

    It is not part of the graphs' memory pool: the pool could not reuse the memory of one graph's output for others.
    """

    def __init__(self) -> None:
        self.buffer: torch.Tensor | None = None

    def rows(self, like: torch.Tensor) -> torch.Tensor:
        """Return rows for an output of the shape, dtype and device of `like`. The buffer grows if it is too small."""
        if self.buffer is None or len(self.buffer) < len(like):
            self.buffer = torch.zeros_like(like, memory_format=torch.contiguous_format)
        return self.buffer[: len(like)]


def capture_graph(
    work: Callable[[], torch.Tensor], device: torch.device, pool: Any, output: SharedOutput
) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """Capture one call of `work`.

    Args:
        work: launches kernels, and returns their output. It runs once before the capture, so that kernels are
            compiled and chosen outside of it.
        device: the GPU that `work` runs on.
        pool: the memory pool of other graphs, or None for a pool of its own.
        output: where a replay writes what `work` returns.

    Returns: the graph, and the rows of `output` that it writes.
    """
    stream = capture_stream(device)
    with torch.cuda.device(device):  # a capture takes place on the current device
        with on_side_stream(stream):
            outputs = output.rows(work())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            outputs.copy_(work())
    return graph, outputs


class GraphedByBucket:
    """Replays `work` on batches that are padded to a bucket: one CUDA graph per bucket, one memory pool for all.

    A graph is captured when its bucket first comes. If the largest comes first, the others fit into its memory.
    Rows of padding are zeros, and their outputs are cut off.

    Args:
        work: (B, C, H, W) on the device -> (B, K). No row may depend on another.
        channels: C. Channels that a batch lacks are zeros.
        buckets: values of B, ascending.
        memory_format: layout of the inputs that `work` gets.
    """

    def __init__(
        self,
        work: Callable[[torch.Tensor], torch.Tensor],
        channels: int,
        buckets: tuple[int, ...] = BUCKETS,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        self.work, self.channels, self.buckets, self.memory_format = work, channels, buckets, memory_format
        # By bucket: graph, its input (B, C, H, W), and its output (B, K).
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}
        self.pool: Any = None
        self.inputs: torch.Tensor | None = None  # shared by all buckets: a batch is copied in right before its replay
        self.output = SharedOutput()

    @torch.inference_mode()
    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Run (N, ...) -> (N, K). A batch larger than the largest bucket runs in several parts."""
        if len(batch) > self.buckets[-1]:
            return torch.cat([self(part) for part in batch.split(self.buckets[-1])])
        bucket = bucket_of(len(batch), self.buckets)
        if bucket not in self.graphs:
            self.capture(bucket, batch)
        graph, inputs, outputs = self.graphs[bucket]
        inputs[: len(batch), : batch.shape[1]].copy_(batch)
        inputs[len(batch) :].zero_()
        graph.replay()
        # The next replay overwrites these outputs.
        return outputs[: len(batch)].clone()

    @torch.inference_mode()
    def capture(self, bucket: int, like: torch.Tensor) -> None:
        """Capture the graph of one bucket, for images of the size, dtype and device of `like`."""
        inputs = self._inputs(bucket, like)
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            graph, outputs = capture_graph(lambda: self.work(inputs), like.device, self.pool, self.output)
        self.pool = self.pool or graph.pool()
        self.graphs[bucket] = (graph, inputs, outputs)

    def _inputs(self, bucket: int, like: torch.Tensor) -> torch.Tensor:
        """Return (bucket, C, H, W), the first rows of a buffer that grows if it is too small."""
        if self.inputs is None or len(self.inputs) < bucket:
            shape = (bucket, self.channels, *like.shape[2:])
            zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
            self.inputs = zeros.contiguous(memory_format=self.memory_format)
        return self.inputs[:bucket]
