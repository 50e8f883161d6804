"""Micro-batches are launched before the answers of earlier ones are written, and the answers stay what they were."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from handlers import transfers
from handlers.encoder.packing import TokenBatch
from handlers.protocol.errors import NotFinite
from handlers.tasks.embeddings import _without_beginnings
from handlers.tasks.shared.task import Answers, TextTask
from handlers.text_encoder import TextEncoder
from handlers.transfers import Download, upload

CPU = torch.device("cpu")
TEXTS = [
    "a [MASK] b",
    "a long [MASK] text about parcels",
    "[MASK] and [MASK]",
    "one [MASK]",
    "yes [MASK], no",
    "[MASK]",
]
TASKS = ["embeddings", "sequence-classification", "token-classification", "fill-mask", "sparse-embeddings"]


@pytest.fixture(params=TASKS)
def handler(request: pytest.FixtureRequest, minilm: TextEncoder, tiny_encoder: Callable[..., TextEncoder]) -> Any:
    """A loaded encoder of each task."""
    return minilm if request.param == "embeddings" else tiny_encoder(request.param)


@pytest.fixture(autouse=True)
def _restored(minilm: TextEncoder) -> Iterator[None]:
    """The handler `minilm` is shared by other tests."""
    model, task = minilm.model, minilm.task
    yield
    minilm.model, minilm.task = model, task


def engine_of(handler: TextEncoder, **changed: Any) -> None:
    """Give the handler an engine with other values."""
    handler.model = dataclasses.replace(handler.model, engine=dataclasses.replace(handler.model.engine, **changed))


def inputs_of(handler: TextEncoder, options: Sequence[dict[str, Any]] = ()) -> list[Any]:
    encoded = handler.encode([handler.read(text.encode(), {}) for text in TEXTS])
    return [(item, options[index % len(options)] if options else {}) for index, item in enumerate(encoded)]


def plain(answer: Any) -> Any:
    """An answer that == compares, bit for bit."""
    if isinstance(answer, np.ndarray):
        return answer.dtype.str, answer.shape, answer.tobytes()
    if hasattr(answer, "as_json"):
        return [(entry["index"], plain(np.asarray(entry["value"]))) for entry in answer.as_json()]
    return type(answer).__name__ if isinstance(answer, NotFinite) else answer


def one_by_one(handler: TextEncoder, inputs: Sequence[Any]) -> list[Any]:
    """The answers of texts that run alone, each written before the next runs."""
    answers = []
    for one in inputs:
        outputs, batch = handler.run([one[0]])
        answers += handler.task.answer(outputs, batch, [one])
    return list(map(plain, answers))


def test_answers_are_those_of_texts_that_run_one_by_one(handler: TextEncoder) -> None:
    engine_of(handler, token_budget=1)
    inputs = inputs_of(handler)
    assert [plain(answer) for answer in handler.predict(inputs)] == one_by_one(handler, inputs)


def test_a_text_whose_outputs_are_not_finite_leaves_the_others_alone(handler: TextEncoder) -> None:
    inputs, run = inputs_of(handler), handler.model.engine.run
    wanted = one_by_one(handler, inputs)
    spoilt = inputs[2][0].ids

    def spoiling(batch: TokenBatch) -> torch.Tensor:
        outputs = run(batch).clone()
        return outputs.fill_(torch.nan) if batch.input_ids.tolist() == spoilt else outputs

    engine_of(handler, token_budget=1, run=spoiling)
    wanted[2] = "NotFinite"
    assert [plain(answer) for answer in handler.predict(inputs)] == wanted


def noting(task: TextTask, events: list[str], ahead: int) -> Any:
    """A task that notes when a micro-batch begins (>) and when its answers are written (<)."""

    class Noting(type(task)):  # type: ignore[misc]
        def begin(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Any]) -> Answers:
            number, answers = sum(event.startswith(">") for event in events), super().begin(outputs, batch, inputs)
            events.append(f">{number}")

            def noted() -> list[object]:
                events.append(f"<{number}")
                return list(answers())

            return noted

    noted = Noting.__new__(Noting)
    noted.__dict__.update(task.__dict__)
    noted.ahead = ahead
    return noted


@pytest.mark.parametrize(
    ("ahead", "wanted"),
    [
        (4, "run >0 run >1 run >2 run >3 run <0 >4 run <1 >5 <2 <3 <4 <5"),
        (9, "run >0 run >1 run >2 run >3 run >4 run >5 <0 <1 <2 <3 <4 <5"),
        (1, "run >0 run <0 >1 run <1 >2 run <2 >3 run <3 >4 run <4 >5 <5"),  # the GPU runs while answers are written
    ],
)
def test_later_micro_batches_run_before_answers_are_written(minilm: TextEncoder, ahead: int, wanted: str) -> None:
    events: list[str] = []
    run = minilm.model.engine.run

    def noted(batch: TokenBatch) -> torch.Tensor:
        events.append("run")
        return run(batch)

    engine_of(minilm, token_budget=1, run=noted)
    minilm.task = noting(minilm.task, events, ahead)
    assert len(minilm.predict(inputs_of(minilm))) == len(TEXTS)
    assert " ".join(events) == wanted


def test_tasks_keep_a_bound_on_what_is_under_way(handler: TextEncoder) -> None:
    assert handler.task.ahead == (1 if handler.model.settings.task == "sparse-embeddings" else 4)


def test_beginnings_are_left_out_as_a_mask_would_leave_them_out() -> None:
    lengths, left_out = (5, 1, 4, 3), (2, 0, 3, 0)
    vectors = torch.randn(sum(lengths), 3)
    offsets = torch.tensor([0, 5, 6, 10, 13])
    kept, ends, starts = _without_beginnings(vectors, offsets, left_out)
    wanted = [
        vectors[start + skipped : start + length]
        for start, length, skipped in zip(offsets[:-1], lengths, left_out, strict=True)
    ]
    assert torch.equal(kept, torch.cat(wanted))
    assert ends.tolist() == [0, 3, 4, 5, 8]
    assert starts.tolist() == [-2, 3, 1, 5]


class TestTransfers:
    def test_on_a_cpu_nothing_is_copied(self) -> None:
        tensors = torch.randn(2, 3), torch.tensor([True, False])
        first, second = Download(*tensors).arrays()
        assert first.ctypes.data == tensors[0].data_ptr()
        assert second.tolist() == [True, False]
        assert upload(tensors[0], CPU) is tensors[0]

    def test_numbers_keep_their_type(self) -> None:
        assert upload([True], CPU).dtype == torch.bool
        assert upload([1, 2], CPU).dtype == torch.int64

    def test_arrays_of_a_gpu_are_read_after_the_copies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fake GPU copies when its event is waited for; what was downloaded keeps no pinned memory."""
        events: list[str] = []
        pinned: list[torch.Tensor] = []

        class Event:
            def record(self, stream: object) -> None:
                events.append("recorded")

            def synchronize(self) -> None:
                events.append("waited")
                for memory in pinned:
                    memory.copy_(torch.arange(3))

        class OnGpu:
            is_cuda, device = True, CPU

        def copied(tensor: object) -> torch.Tensor:
            events.append("launched")
            pinned.append(torch.zeros(3, dtype=torch.int64))
            return pinned[-1]

        monkeypatch.setattr(transfers, "_copy", copied)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
        download = Download(OnGpu(), OnGpu())  # type: ignore[arg-type]
        assert events == ["launched", "launched", "recorded"]
        arrays = download.arrays()
        assert events == ["launched", "launched", "recorded", "waited"]
        assert [array.tolist() for array in arrays] == [[0, 1, 2]] * 2
        assert all(array.ctypes.data != memory.data_ptr() for array, memory in zip(arrays, pinned, strict=True))
