"""How a plan gets a batch: by which profile, as a graph or at its own size. A stand-in for TensorRT, on the CPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from handlers.engines import graphs, plans, tensorrt

CLASSES, SIDE = 4, 8
CPU = torch.device("cpu")
LAYOUTS = {"channels_last": (-1, SIDE, SIDE, 3), "channels_first": (-1, 3, SIDE, SIDE)}
DEFAULT, OWN, CAPTURING = 0, 7, 8  # streams


class Context:
    """Keeps what it was given, and computes nothing. profiles: those in use, where they are not shared."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.profile, self.device_memory = machine, -1, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.streams: list[int] = []

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if not self.machine.shares and profile in [other.profile for other in self.machine.contexts]:
            return False
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        assert self.machine.stream != CAPTURING, "a capture would not see this"
        self.shapes[name] = shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)
        return True


class NewContext(Context):
    """As TensorRT 10.1 and newer."""

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == self.machine.bytes
        self.device_memory = address


@dataclass
class Machine:
    """A GPU and TensorRT that run nothing. stream: the current one. replays: batch sizes of graphs."""

    shares: bool = True
    bytes: int = 512
    contexts: list[Context] = field(default_factory=list)
    replays: list[int] = field(default_factory=list)
    stream: int = DEFAULT

    def create(self, kind: type[Context]) -> Context:
        self.contexts.append(kind(self))
        return self.contexts[-1]

    @contextlib.contextmanager
    def on_side_stream(self, stream: Any) -> Iterator[None]:
        before, self.stream = self.stream, stream.cuda_stream
        yield
        self.stream = before

    def capture_graph(
        self, work: Callable[[], torch.Tensor], device: object, pool: object, output: object
    ) -> tuple[Any, torch.Tensor]:
        for self.stream in (OWN, CAPTURING):
            outputs = work()
        self.stream = DEFAULT
        graph = SimpleNamespace(replay=lambda: self.replays.append(len(outputs)), pool=lambda: "pool")
        return graph, outputs

    @property
    def used(self) -> list[Context]:
        """Contexts that ran something."""
        return [context for context in self.contexts if context.streams]


def tensorrt_86(machine: Machine, deserialize: Callable[[bytes], Any]) -> Any:
    """What of the package is asked for, by 8.6's names."""
    return SimpleNamespace(
        ILogger=type("ILogger", (), {"ERROR": 1, "WARNING": 2}),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize, logger=logger),
    )


@pytest.fixture(params=["8.6", "10"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    shapes: dict[str, tuple[int, ...]] = {tensorrt.OUTPUT: (-1, CLASSES)}

    def deserialize(content: bytes) -> Any:
        if content not in (b"channels_last", b"channels_first"):
            return None
        shapes[tensorrt.INPUT] = LAYOUTS[content.decode()]
        engine = SimpleNamespace(get_tensor_shape=shapes.__getitem__)
        if request.param == "8.6":
            engine.device_memory_size = found.bytes
            engine.create_execution_context_without_device_memory = lambda: found.create(Context)
        else:
            engine.device_memory_size_v2 = found.bytes
            engine.create_execution_context = lambda strategy: found.create(NewContext)
        return engine

    fake = tensorrt_86(found, deserialize)
    if request.param == "10":
        fake.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=2)
    own = SimpleNamespace(cuda_stream=OWN, synchronize=lambda: None)
    monkeypatch.setattr(tensorrt, "tensorrt_module", lambda: fake)
    monkeypatch.setattr(tensorrt, "on_side_stream", found.on_side_stream)
    monkeypatch.setattr(graphs, "capture_graph", found.capture_graph)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: own)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=found.stream))
    return found


def batch(count: int, layout: torch.memory_format = torch.channels_last) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE).half().contiguous(memory_format=layout)


def runner(buckets: tuple[int, ...] = (1, 8, 64), plan: bytes = b"channels_last") -> tensorrt.PlanRunner:
    return tensorrt.PlanRunner(plan, buckets, CPU)


@pytest.mark.parametrize(
    ("plan", "layout", "shape"),
    [
        (b"channels_last", torch.channels_last, (40, SIDE, SIDE, 3)),
        (b"channels_first", torch.contiguous_format, (40, 3, SIDE, SIDE)),
    ],
)
def test_images_that_lie_as_the_plan_reads_them_are_not_copied(
    machine: Machine, plan: bytes, layout: torch.memory_format, shape: tuple[int, ...]
) -> None:
    images = batch(40, layout)
    logits = runner(plan=plan)(images)
    (context,) = machine.used
    assert context.addresses == {tensorrt.INPUT: images.data_ptr(), tensorrt.OUTPUT: logits.data_ptr()}
    assert context.shapes == {tensorrt.INPUT: shape}


@pytest.mark.parametrize("plan", [b"channels_last", b"channels_first"])
def test_images_that_lie_otherwise_are_copied(machine: Machine, plan: bytes) -> None:
    images = batch(40, torch.contiguous_format if plan == b"channels_last" else torch.channels_last)
    runner(plan=plan)(images)
    assert machine.used[0].addresses[tensorrt.INPUT] != images.data_ptr()


# count -> graphs that are replayed; images that run at their own size, and by which profile.
WAYS: dict[int, tuple[list[int], list[tuple[int, int]]]] = {
    1: ([1], []),
    3: ([4], []),
    8: ([8], []),
    9: ([16], []),
    32: ([32], []),
    33: ([], [(33, 2)]),
    63: ([], [(63, 2)]),
    64: ([64], []),
    65: ([64, 1], []),
    100: ([64], [(36, 2)]),
}


@pytest.mark.parametrize(("count", "way"), WAYS.items(), ids=map(str, WAYS))
def test_what_runs_a_batch(machine: Machine, count: int, way: tuple[list[int], list[tuple[int, int]]]) -> None:
    assert runner()(batch(count)).shape == (count, CLASSES)
    own = [context for context in machine.used if CAPTURING not in context.streams]
    assert machine.replays == way[0]
    assert [(context.shapes[tensorrt.INPUT][0], context.profile) for context in own] == way[1]


def test_a_graph_has_a_context_of_its_own_in_memory_that_all_share(machine: Machine) -> None:
    found = runner()
    for count in (64, 5, 1, 5, 40, 2):
        found(batch(count))
    graphs_of = [context for context in machine.used if CAPTURING in context.streams]
    assert sorted(context.shapes[tensorrt.INPUT][0] for context in graphs_of) == [1, 2, 8, 64]
    assert [context.profile for context in graphs_of] == [2, 1, 0, 1]
    assert {context.device_memory for context in machine.contexts} == {found.memory.data_ptr()}
    inputs = {context.addresses[tensorrt.INPUT] for context in graphs_of}
    assert len(inputs) == 1, "the largest bucket came first, and the others fit into its input"


def test_nothing_runs_on_the_default_stream(machine: Machine) -> None:
    found = runner()
    for count in (1, 40, 64, 200):
        found(batch(count))
    assert {stream for context in machine.used for stream in context.streams} == {OWN, CAPTURING}


def test_a_plan_whose_profiles_are_not_shared_runs_without_graphs(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT 8.6 gives a profile to one context, unless the plan was built otherwise."""
    machine.shares = False
    found = runner()
    for count in (1, 5, 64):
        assert found(batch(count)).shape == (count, CLASSES)
    assert machine.replays == []
    assert [context.profile for context in machine.used] == [0, 1, 2]
    assert "without CUDA graphs; a plan that is built again runs with them" in caplog.text


def test_plans_of_8_6_are_built_to_be_shared() -> None:
    said: list[tuple[str, bool]] = []
    config = SimpleNamespace(
        set_memory_pool_limit=lambda *_: None,
        set_flag=lambda flag: said.append((flag, True)),
        set_preview_feature=lambda feature, on: said.append((feature, on)),
    )
    trt = SimpleNamespace(
        MemoryPoolType=SimpleNamespace(WORKSPACE=0),
        BuilderFlag=SimpleNamespace(FP16="fp16"),
        PreviewFeature=SimpleNamespace(PROFILE_SHARING_0806="sharing"),
        NetworkDefinitionCreationFlag=SimpleNamespace(__members__={"EXPLICIT_BATCH": 0}),
    )
    builder = SimpleNamespace(create_builder_config=lambda: config)
    assert tensorrt._config(trt, builder) is config
    assert said == [("fp16", True), ("sharing", True)]
    trt.NetworkDefinitionCreationFlag.__members__["STRONGLY_TYPED"] = 1
    said.clear()
    tensorrt._config(trt, builder)
    assert said == []


def test_warnings_are_logged_and_explain_no_failure(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    found = runner()
    with caplog.at_level(logging.INFO):
        found.log.logger.log(2, "Using default stream")
        found.log.logger.log(3, "of no interest")
        assert found.log.last_error == ""
        found.log.logger.log(1, "broken")
    levels = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert levels == [("WARNING", "TensorRT: Using default stream"), ("ERROR", "TensorRT: broken")]
    assert found.log.last_error == "broken"


def test_a_plan_that_tensorrt_does_not_take(machine: Machine) -> None:
    with pytest.raises(plans.PlanError, match="cannot deserialise the plan"):
        runner(plan=b"else")
