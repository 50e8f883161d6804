"""No engine serves that does not give the fp32 outputs: the next one does, or none, and figures say why."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from handlers import engines, loading
from handlers.encoder import ops
from handlers.encoder.packing import TokenBatch
from handlers.engines import EngineSpec, LoadedEngine, fused, graphs, torch_eager
from handlers.image_classifier import ImageClassifier
from handlers.selection import choosing, deviations, references, results_cache, verification
from handlers.selection.references import Images, Texts
from handlers.settings import TEXT_TASKS, ImageSettings, TextSettings
from handlers.tasks.shared.pooling import Pooling
from handlers.tasks.shared.sparse_pooling import SparsePooling
from handlers.text_encoder import TextEncoder

pytestmark = pytest.mark.usefixtures("pytorch_alone")

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
HEADS = {
    "embeddings": transformers.BertModel,
    "sequence-classification": transformers.BertForSequenceClassification,
    "token-classification": transformers.BertForTokenClassification,
    "fill-mask": transformers.BertForMaskedLM,
    "sparse-embeddings": transformers.BertForMaskedLM,
}


@pytest.fixture
def archive_of(minilm_folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """archive_of(task) -> an unpacked archive of a two-layer BERT, without a reference of its own."""

    def make(task: str) -> Path:
        torch.manual_seed(0)
        config = transformers.BertConfig(**TINY, initializer_range=0.3, max_position_embeddings=64)
        HEADS[task](config).save_pretrained(tmp_path / "archive")  # type: ignore[no-untyped-call, unused-ignore]
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(minilm_folder / name, tmp_path / "archive" / name)
        return tmp_path / "archive"

    return make


def spec_of(folder: Path, task: str = "embeddings", precision: str = "fp32") -> EngineSpec:
    return EngineSpec("text-encoder", folder, CPU, precision, task=task, plan_cache=folder.parent / "cache")


def break_attention(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """The fused encoder's attention puts out this."""

    def attention(self: object, qkv: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.full((len(qkv), qkv.shape[1] // 3), value, dtype=qkv.dtype)

    monkeypatch.setattr(ops.TorchEncoderOps, "attention", attention)


@pytest.mark.parametrize("kept_in", ["archive", "nothing"])
@pytest.mark.parametrize("task", TEXT_TASKS)
def test_an_engine_that_is_right_serves(archive_of: Callable[[str], Path], task: str, kept_in: str) -> None:
    spec = spec_of(archive_of(task), task)
    if kept_in == "archive":
        references.compute(spec).save(spec.model_dir)
    name, engine = choosing.load_chosen("auto", spec)
    assert name == "fused"
    said: Any = engine.details["checked"]
    assert said["when"] == "here"
    assert said["against"] == (references.OF_ARCHIVE if kept_in == "archive" else references.OF_THIS_MACHINE)
    assert said["leastCosine"] > 0.99999 if "embeddings" in task else said["relativeError"] < 1e-4
    assert "dropped" not in engine.details
    json.dumps(engine.details, allow_nan=False)


WRONG = {"zeros": (0.0, "against fp32; at "), "not finite": (float("nan"), "its outputs are not finite")}


@pytest.mark.parametrize(("value", "said"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("task", TEXT_TASKS)
def test_one_that_is_wrong_is_dropped_for_the_next(
    archive_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    task: str,
    value: float,
    said: str,
) -> None:
    spec = spec_of(archive_of(task), task)
    break_attention(monkeypatch, value)
    for when in ("here", "earlier"):
        caplog.clear()
        name, engine = choosing.load_chosen("auto", spec)
        dropped: Any = engine.details["dropped"]
        details: Any = engine.details
        assert (name, details["checked"]["when"]) == ("torch_eager", when)
        assert list(dropped) == ["fused"]
        assert said in dropped["fused"]
        assert "engine fused dropped" in caplog.text
        json.dumps(engine.details, allow_nan=False)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_worker_whose_named_engine_is_wrong_does_not_become_ready(
    archive_of: Callable[[str], Path],
    load_handler: Callable[..., TextEncoder],
    monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    folder = archive_of("embeddings")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent))
    break_attention(monkeypatch, value)
    with pytest.raises(ValueError, match=r"no engine gives this model's outputs in fp32 on cpu .*fused: (least|its)"):
        load_handler(TextEncoder, folder, engine="fused", maxTokens=64)
    handler = load_handler(TextEncoder, folder, maxTokens=64)
    assert handler.model.description["engine"]["name"] == "torch_eager"
    assert "fused" in handler.model.description["engine"]["dropped"]


def test_one_that_raises_is_dropped_and_back_the_next_time(
    archive_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(archive_of("embeddings"))

    def fail(spec: EngineSpec) -> LoadedEngine:
        raise RuntimeError("no kernel")

    with monkeypatch.context() as patch:
        patch.setattr(fused.ENGINE, "load", fail)
        name, engine = choosing.load_chosen("auto", spec)
        assert (name, engine.details["dropped"]) == ("torch_eager", {"fused": "RuntimeError: no kernel"})
        with pytest.raises(RuntimeError, match="no kernel"):
            choosing.load_chosen("fused", spec)
    assert choosing.load_chosen("auto", spec)[0] == "fused"


def test_later_loads_compare_nothing_until_something_changes(
    archive_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(archive_of("embeddings"))
    compared: list[int] = []
    compare = verification.compare

    def counted(spec: EngineSpec, candidates: list[str]) -> Any:
        compared.append(1)
        return compare(spec, candidates)

    monkeypatch.setattr(verification, "compare", counted)
    others = ({"precision": "bf16"}, {"pooling": Pooling(("cls",))}, {"sparse_pooling": SparsePooling("sum")})
    for changes in ({}, {}, *others, {}):
        choosing.load_chosen("auto", dataclasses.replace(spec, **changes))
    assert len(compared) == 4
    weights = {key: value * 1.5 for key, value in load_file(spec.model_dir / "model.safetensors").items()}
    save_file(weights, spec.model_dir / "model.safetensors", {"format": "pt"})
    for name, value in ((None, None), ("device_name", "another"), ("source_digest", "newer")):
        if name:
            monkeypatch.setattr(results_cache, name, lambda *_, value=value: value)
        choosing.load_chosen("auto", spec)
    assert len(compared) == 7


def test_where_nothing_can_be_kept_it_compares_each_time(
    archive_of: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of(archive_of("embeddings"))
    spec.plan_cache.write_text("a file where the folder should be", encoding="utf-8")
    for _ in range(2):
        details: Any = choosing.load_chosen("auto", spec)[1].details
        assert details["checked"]["when"] == "here"
    assert "cannot be kept" in caplog.text


def test_the_archives_own_reference_finds_what_this_machine_computes_wrongly(
    archive_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both engines here, as with a broken library; without a reference the reference itself would serve."""
    spec = spec_of(archive_of("embeddings"))
    references.compute(spec).save(spec.model_dir)
    layer_norm = torch.nn.functional.layer_norm
    monkeypatch.setattr(torch.nn.functional, "layer_norm", lambda *given, **more: layer_norm(*given, **more) + 1)
    with pytest.raises(ValueError, match=r"fused: least cosine .*torch_eager: least cosine"):
        choosing.load_chosen("auto", spec)


def test_a_damaged_reference_is_refused(archive_of: Callable[[str], Path]) -> None:
    spec = spec_of(archive_of("embeddings"))
    (spec.model_dir / references.FILE).write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"parity.safetensors is damaged; package the archive again"):
        choosing.load_chosen("auto", spec)


def test_a_reference_of_another_task_is_computed_here(
    archive_of: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of(archive_of("sequence-classification"), "sequence-classification")
    references.compute(spec).save(spec.model_dir)
    details: Any = choosing.load_chosen("auto", dataclasses.replace(spec, task="embeddings"))[1].details
    assert details["checked"]["against"] == references.OF_THIS_MACHINE
    assert "is of another task or image size" in caplog.text


def test_the_reference_itself_is_compared_with_nothing(archive_of: Callable[[str], Path]) -> None:
    spec = spec_of(archive_of("embeddings"))
    details: Any = choosing.load_chosen("torch_eager", spec)[1].details
    assert details["checked"]["against"].startswith("nothing: it is the reference")
    references.compute(spec).save(spec.model_dir)
    details = choosing.load_chosen("torch_eager", spec)[1].details
    assert details["checked"]["against"] == references.OF_ARCHIVE


@pytest.mark.parametrize("task", TEXT_TASKS)
def test_texts_come_back_as_they_were_saved(archive_of: Callable[[str], Path], task: str) -> None:
    spec = spec_of(archive_of(task), task)
    made = references.compute(dataclasses.replace(spec, device=torch.device("cuda", 0)))  # on the CPU, for a GPU
    made.save(spec.model_dir)
    found = references.of(spec)
    assert isinstance(made, Texts)
    assert isinstance(found, Texts)
    assert (found.task, found.ids, found.types, found.selected) == (made.task, made.ids, made.types, made.selected)
    assert all(torch.equal(a, b) for a, b in zip(found.outputs, made.outputs, strict=True))
    assert max(map(len, found.ids)) == 64
    assert len(found.ids) == 1 + len(references.SENTENCES)


def test_a_cpu_is_spared_long_texts(archive_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(archive_of("embeddings"))
    assert isinstance(short := references.compute(spec), Texts)
    assert len(short.ids) == len(references.SENTENCES)
    seen: list[tuple[int, ...]] = []
    texts = references.compute(dataclasses.replace(spec, device=torch.device("cuda", 0)))
    engine = engines.load("torch_eager", spec)

    def run(batch: TokenBatch) -> torch.Tensor:
        seen.append(batch.lengths)
        return engine.run(batch)

    watched = dataclasses.replace(engine, run=run)
    monkeypatch.setattr(references, "CPU_TOKENS", 40)
    assert texts.compare(watched, spec).passed
    monkeypatch.setattr(references, "CPU_TOKENS", 1)
    assert texts.compare(watched, spec).passed
    assert [len(lengths) for lengths in seen] == [7, 1]
    assert min(seen[0]) == seen[1][0]


def test_a_gpu_is_asked_for_each_text_alone_for_all_and_for_as_many_as_run_at_once() -> None:
    ids = [[1, 2, 3], [4], [5, 6]]
    outputs = [torch.ones(len(row), 4) for row in ids]
    texts = Texts("token-classification", ids, [[0] * len(row) for row in ids], [], outputs)
    seen: list[tuple[int, ...]] = []

    class OnGpu(Texts):
        def batch(self, indices: Sequence[int], device: torch.device) -> TokenBatch:
            return super().batch(indices, CPU)

    def run(batch: TokenBatch) -> torch.Tensor:
        seen.append(batch.lengths)
        return torch.ones(batch.tokens, 4)

    spec = dataclasses.replace(spec_of(Path("nowhere"), texts.task, "fp16"), device=torch.device("cuda", 0))
    on_gpu = OnGpu(**vars(texts))
    for pads, repeats in ((True, 2), (False, 3)):
        seen.clear()
        assert on_gpu.compare(LoadedEngine(run, {}, pads=pads, token_budget=20), spec).passed
        assert seen == [(3,), (1,), (2,), (3, 1, 2), (3, 1, 2) * repeats]
    seen.clear()
    on_gpu.compare(LoadedEngine(run, {}), dataclasses.replace(spec, token_budget=9))
    assert seen[-1] == (3, 1, 2)


# --- Images


def image_spec(folder: Path, cache: Path) -> EngineSpec:
    return EngineSpec("image-classifier", folder, CPU, "bf16", image_size=32, plan_cache=cache)


def test_a_named_engine_of_images_is_compared_on_a_cpu_too(
    digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, load = image_spec(digits_folder, tmp_path), torch_eager.ENGINE.load
    for asked in ("torch_eager", "auto"):
        details: Any = choosing.load_chosen(asked, spec)[1].details
        assert 0 < details["checked"]["relativeError"] < 5e-2

    def wrong(spec: EngineSpec) -> LoadedEngine:
        engine = load(spec)
        return engine if spec.precision == "fp32" else LoadedEngine(lambda images: engine.run(images) * 0, {})

    monkeypatch.setattr(torch_eager.ENGINE, "load", wrong)
    monkeypatch.setattr(results_cache, "source_digest", lambda: "newer")
    with pytest.raises(
        ValueError, match=r"in bf16 on cpu .*torch_eager: relative error 1 against fp32; at most 0.05"
    ):
        choosing.load_chosen("torch_eager", spec)


def test_images_come_back_as_they_were_saved(digits_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(digits_folder, tmp_path / "archive"))
    spec = image_spec(folder, tmp_path)
    made = references.compute(dataclasses.replace(spec, device=torch.device("cuda", 0)))  # on the CPU, for a GPU
    made.save(folder)
    found = references.of(spec)
    assert isinstance(made, Images)
    assert isinstance(found, Images)
    assert isinstance(found.images, torch.Tensor)
    assert isinstance(made.images, torch.Tensor)
    assert torch.equal(found.images, made.images)
    assert torch.equal(found.outputs, made.outputs)
    assert references.of(dataclasses.replace(spec, image_size=64)).source == references.OF_THIS_MACHINE
    batch = found.batch(spec, 9)
    assert isinstance(batch, torch.Tensor)
    assert batch.shape == (9, 3, 32, 32)
    assert torch.equal(found.logits(9)[7:], made.outputs[:2])


def test_a_gpu_is_asked_for_every_batch_size_that_memory_suffices_for(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    class OnGpu(Images):
        def batch(self, spec: EngineSpec, count: int) -> torch.Tensor:
            return torch.ones(count, 3)

    def run(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        if len(images) > 5:
            raise torch.OutOfMemoryError("no memory is left")
        return images

    spec = EngineSpec("image-classifier", Path("nowhere"), torch.device("cuda", 0), "fp16", batch_size=9)
    deviation = OnGpu(torch.ones(7, 3, 2, 2), torch.ones(7, 3)).compare(LoadedEngine(run, {}), spec)
    assert deviation.passed
    assert not deviation.complete, "so nothing is kept, and the next load compares again"
    assert seen == [9, 8, 5, 4, 3, 2, 1]
    assert "memory is short" in caplog.text


# --- Deviations


def test_a_row_near_zero_is_set_against_the_others() -> None:
    """The one logit of a cross-encoder: 0.001 may be off by as much as 5 may."""
    reference = torch.tensor([[5.0], [-4.0], [0.001]])
    assert deviations.of_logits(reference + 0.003, reference, "fp16").passed
    assert not deviations.of_logits(reference + 0.1, reference, "fp16").passed


def test_fp8_has_to_agree_on_the_likeliest_class() -> None:
    reference = torch.tensor([[1.0, 0.9, 8.0], [0.9, 1.0, 8.0]])
    swapped = torch.tensor([[8.0, 0.9, 8.1], [0.9, 1.0, 8.0]])
    assert deviations.of_logits(reference * 1.1, reference, "fp8").passed
    close = torch.tensor([[2.0, 1.9]]), torch.tensor([[1.9, 2.0]])
    deviation = deviations.of_logits(close[0], close[1], "fp8")
    assert deviation.value < 0.2
    assert not deviation.passed
    assert "agreement 0" in str(deviation)
    assert not deviations.of_logits(swapped, reference, "fp8").passed


def test_the_worst_figure_decides() -> None:
    def of(value: float, cosine: bool = False) -> deviations.Deviation:
        return deviations.Deviation(value, "fp16", cosine)

    assert deviations.worst([of(1e-3), of(2e-3), of(1e-4)]).value == 2e-3
    assert deviations.worst([of(0.99999, True), of(0.9), of(0.99999, True)]).value == 0.9
    assert deviations.worst([of(0.3), of(float("nan")), of(0.5)]).as_dict() == {"relativeError": "not finite"}
    assert deviations.worst([of(0.99, True), of(0.98, True)]).value == 0.98


def test_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"outputs of shape \(2, 3\) came; wanted: \(2, 4\)"):
        deviations.of_logits(torch.zeros(2, 3), torch.zeros(2, 4), "fp16")


# --- What runs at once


@pytest.mark.parametrize(
    ("batch_size", "max_inputs", "micro_batch", "most"),
    [(1, 64, 256, 64), (8, 4, 256, 32), (32, 64, 256, 256), (8, 64, 100, 100)],
)
def test_a_spec_knows_how_many_images_may_come_at_once(
    batch_size: int, max_inputs: int, micro_batch: int, most: int
) -> None:
    chosen = ImageSettings(max_inputs=max_inputs, micro_batch=micro_batch)
    spec = loading.engine_spec("image-classifier", Path("x"), CPU, "fp16", chosen, batch_size)
    assert spec.batch_size == most


def test_a_spec_of_texts_holds_what_they_are_compared_by() -> None:
    chosen = TextSettings(max_tokens=99, token_budget=500, pooling=Pooling(("cls",), True))
    spec = loading.engine_spec("text-encoder", Path("x"), CPU, "fp16", chosen, 1)
    assert (spec.max_tokens, spec.token_budget, spec.pooling) == (99, 500, chosen.pooling)


class OnGpu:
    """An image classifier whose device says it were a GPU, and whose network keeps what it was asked to run."""

    def __init__(self, handler: ImageClassifier, most: int, room: int = 1000) -> None:
        self.ran: list[int] = []
        self.handler = ImageClassifier()
        spec = dataclasses.replace(handler.model.spec, device=torch.device("cuda", 0), batch_size=most)
        engine = LoadedEngine(self.run, {})
        self.room = room
        self.handler.model = dataclasses.replace(handler.model, spec=spec, engine=engine)
        self.handler.pipeline = copy.copy(handler.pipeline)
        self.handler.pipeline.batch = lambda inputs: torch.zeros(len(inputs), 3)  # type: ignore[method-assign]

    def run(self, images: torch.Tensor) -> torch.Tensor:
        self.ran.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("no memory is left")
        return images


def test_every_bucket_that_can_come_is_run_before_the_first_request(digits: ImageClassifier) -> None:
    fake = OnGpu(digits, 40)
    fake.handler._warm_up()
    assert fake.ran == graphs.sizes_up_to(40)[::-1]
    buckets = {graphs.bucket_of(size) for size in fake.ran}
    assert buckets == {graphs.bucket_of(count) for count in range(1, 41)}
    fake.ran.clear()
    assert len(fake.handler.run([None] * 100)) == 100
    assert fake.ran == [40, 40, 20]


def test_batches_are_cut_to_what_memory_sufficed_for(
    digits: ImageClassifier, caplog: pytest.LogCaptureFixture
) -> None:
    fake = OnGpu(digits, 40, room=20)
    fake.handler._warm_up()
    fake.ran.clear()
    assert len(fake.handler.run([None] * 40)) == 40
    assert fake.ran == [17, 17, 6]
    assert "batches of more than 17 images are cut" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        OnGpu(digits, 4, room=0).handler._warm_up()
