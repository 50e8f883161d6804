"""CUDA graphs by batch bucket: one launch instead of hundreds, which is most of a small batch's time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def bucket_of(count: int, buckets: tuple[int, ...] = BUCKETS) -> int:
    """The smallest bucket that holds `count` rows. Raises ValueError beyond the largest."""
    for bucket in buckets:
        if count <= bucket:
            return bucket
    raise ValueError(f"{count} rows came; the largest bucket is {buckets[-1]}")


def sizes_up_to(most: int) -> list[int]:
    """The least and the largest batch of every bucket up to `most` rows, ascending: 1, 2, 3, 4, 5, 8, 9, 16, 17, ...

    Between those two an engine takes as long as for the larger (it pads), or in proportion.
    """
    most = min(most, BUCKETS[-1])
    edges = {1, most, *BUCKETS, *(bucket + 1 for bucket in BUCKETS)}
    return sorted(size for size in edges if size <= most)


@contextlib.contextmanager
def beside(stream: torch.cuda.Stream) -> Iterator[None]:
    """Launch on `stream`, behind the work of the current stream and ahead of what that one gets afterwards."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        current.wait_stream(stream)


@functools.cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a device on which graphs are tried and captured.

    cuBLAS keeps a workspace of 32 MB per stream, so a new stream per graph would take a gigabyte in the end.
    """
    return torch.cuda.Stream(device)


class Room:
    """A buffer that several graphs write their outputs into, each its first rows: one is read before the next runs.

    It lies outside the graphs' memory pool, which could not give the memory of a graph's own output to other graphs.
    """

    def __init__(self) -> None:
        self.held: torch.Tensor | None = None

    def rows(self, like: torch.Tensor) -> torch.Tensor:
        """Rows for an output of the shape, type and device of `like`."""
        if self.held is None or len(self.held) < len(like):
            self.held = torch.zeros_like(like, memory_format=torch.contiguous_format)
        return self.held[: len(like)]


def captured(
    work: Callable[[], torch.Tensor], device: torch.device, pool: Any, room: Room
) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """The graph of one call of `work`, in the memory pool of other graphs or (None) one of its own, and its output.

    `work` runs once before: kernels are compiled and chosen there, outside the capture.
    """
    stream = capture_stream(device)
    with torch.cuda.device(device):  # a capture takes place on the current one
        with beside(stream):
            outputs = room.rows(work())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            outputs.copy_(work())
    return graph, outputs


class GraphedByBucket:
    """Replays `work` on batches padded to a bucket, one CUDA graph a bucket over one memory pool.

    work: (B, ...) on the device -> (B, K), row by row: no row may depend on another. A graph is captured when its
    bucket is first used; if the largest comes first, all others fit into its memory. Rows of padding are zeros, and
    are cut off the output.
    channels: of (B, C, H, W) inputs as `work` gets them; those beyond the batch's own are zeros.
    buckets: ascending batch sizes. memory_format: of the inputs as `work` gets them.
    """

    def __init__(
        self,
        work: Callable[[torch.Tensor], torch.Tensor],
        channels: int,
        buckets: tuple[int, ...] = BUCKETS,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        self.work, self.channels, self.buckets, self.memory_format = work, channels, buckets, memory_format
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}
        self.pool: Any = None
        self.inputs: torch.Tensor | None = None  # that all buckets read from: a replay follows each copy into it
        self.outputs = Room()

    @torch.inference_mode()
    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (N, K); more rows than the largest bucket are run in several parts."""
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
        """Capture the graph of one bucket, for images of the size, type and device of `like`."""
        inputs = self._inputs(bucket, like)
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            graph, outputs = captured(lambda: self.work(inputs), like.device, self.pool, self.outputs)
        self.pool = self.pool or graph.pool()
        self.graphs[bucket] = (graph, inputs, outputs)

    def _inputs(self, bucket: int, like: torch.Tensor) -> torch.Tensor:
        """(bucket, C, H, W): the first rows of a buffer, which grows where it is too small."""
        if self.inputs is None or len(self.inputs) < bucket:
            shape = (bucket, self.channels, *like.shape[2:])
            zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
            self.inputs = zeros.contiguous(memory_format=self.memory_format)
        return self.inputs[:bucket]
