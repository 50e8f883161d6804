"""How a plan gets a batch: by which profile, in which layout, without a copy. A stand-in for TensorRT, on the CPU."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from handlers.engines import plans, tensorrt

CLASSES, SIDE = 4, 8
LAYOUTS = {"channels_last": (-1, SIDE, SIDE, 3), "channels_first": (-1, 3, SIDE, SIDE)}


class Context:
    """Keeps what it was given, and computes nothing."""

    def __init__(self) -> None:
        self.profile, self.shapes, self.addresses = -1, {}, {}  # type: ignore[var-annotated]

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        return True


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[Context]:
    """Those that the runner creates, one a profile."""
    made: list[Context] = []
    shapes: dict[str, tuple[int, ...]] = {tensorrt.OUTPUT: (-1, CLASSES)}

    def create() -> Context:
        made.append(Context())
        return made[-1]

    def deserialize(content: bytes) -> Any:
        if content not in (b"channels_last", b"channels_first"):
            return None
        shapes[tensorrt.INPUT] = LAYOUTS[content.decode()]
        return SimpleNamespace(get_tensor_shape=shapes.__getitem__, create_execution_context=create)

    fake = SimpleNamespace(
        ILogger=type("ILogger", (), {"ERROR": 1}),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize),
    )
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    monkeypatch.setattr(tensorrt, "_tensorrt", lambda: fake)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return made


def batch(count: int, layout: torch.memory_format) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE).half().contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("plan", "layout", "shape"),
    [
        (b"channels_last", torch.channels_last, (5, SIDE, SIDE, 3)),
        (b"channels_first", torch.contiguous_format, (5, 3, SIDE, SIDE)),
    ],
)
def test_images_that_lie_as_the_plan_reads_them_are_not_copied(
    contexts: list[Context], plan: bytes, layout: torch.memory_format, shape: tuple[int, ...]
) -> None:
    images = batch(5, layout)
    logits = tensorrt.PlanRunner(plan, (8,), torch.device("cpu"))(images)
    assert contexts[0].addresses == {tensorrt.INPUT: images.data_ptr(), tensorrt.OUTPUT: logits.data_ptr()}
    assert contexts[0].shapes == {tensorrt.INPUT: shape}


@pytest.mark.parametrize("plan", [b"channels_last", b"channels_first"])
def test_images_that_lie_otherwise_are_copied(contexts: list[Context], plan: bytes) -> None:
    images = batch(5, torch.contiguous_format if plan == b"channels_last" else torch.channels_last)
    tensorrt.PlanRunner(plan, (8,), torch.device("cpu"))(images)
    assert contexts[0].addresses[tensorrt.INPUT] != images.data_ptr()


@pytest.mark.parametrize(("count", "ran"), [(1, [1, 0]), (2, [0, 2]), (8, [0, 8]), (9, [1, 8]), (20, [0, 4])])
def test_the_smallest_profile_that_holds_a_batch(contexts: list[Context], count: int, ran: list[int]) -> None:
    """ran: images that each of the profiles, of 1 and of up to 8, got last."""
    logits = tensorrt.PlanRunner(b"channels_last", (1, 8), torch.device("cpu"))(batch(count, torch.channels_last))
    assert logits.shape == (count, CLASSES)
    assert [context.profile for context in contexts] == [0, 1]
    assert [context.shapes.get(tensorrt.INPUT, (0,))[0] for context in contexts] == ran


def test_a_plan_that_tensorrt_does_not_take(contexts: list[Context]) -> None:
    with pytest.raises(plans.PlanError, match="cannot deserialise the plan"):
        tensorrt.PlanRunner(b"else", (8,), torch.device("cpu"))
