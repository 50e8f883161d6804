"""TensorRT on an NVIDIA GPU: plans built, cached, packed, refused, and the measured choice of engines."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import train_digits
from transformers import ResNetForImageClassification

from archive import tensorrt_files
from handlers.engines import EngineSpec, load, plans, tensorrt
from handlers.images.batching import Batcher
from handlers.images.preparation import prepare
from handlers.images.preprocess import Preprocess
from handlers.selection.choosing import load_chosen

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(not tensorrt.installed(), reason="needs TensorRT"),
]

DIGITS = Path(__file__).parents[2] / "archive" / "digits"
PREPROCESS = Preprocess(size=32, resize=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
BUCKETS = (1, 64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder in place of the user's, for plans and timing caches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield plans.default_cache()


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> EngineSpec:
    """The digits network with its plan, as packaging stages it; `cache` has a timing cache then, and no plan."""
    folder = tmp_path_factory.mktemp("archive")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(DIGITS / name, folder)
    started = time.monotonic()
    tensorrt_files.write(
        ResNetForImageClassification.from_pretrained(DIGITS), folder, BUCKETS, 32, "onnx", "packaging"
    )
    print(f"the first plan was built in {time.monotonic() - started:.0f} s")
    return EngineSpec(
        "image-classifier",
        folder,
        torch.device("cuda", 0),
        "fp16",
        image_size=32,
        batch_size=32,
        buckets=BUCKETS,
        plan_cache=cache,
    )


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """(360, 3, 32, 32): the held-out digits, normalised, fp32, on the CPU."""
    files = [train_digits.digit_png(digit) for digit in train_digits.split().held_out_images]
    crops = [crop for file in files for crop in prepare(file, PREPROCESS, 10**6)]
    return Batcher(PREPROCESS, torch.device("cpu"), torch.float32)(crops)


# As graphs up to 32 and at 64, at their own size between; 65 and 360 in parts.
@pytest.mark.parametrize("count", [1, 2, 8, 31, 32, 33, 63, 64, 65, 360])
@torch.inference_mode()
def test_logits_of_every_batch_size(spec: EngineSpec, images: torch.Tensor, count: int) -> None:
    engine = load("tensorrt", spec)
    assert engine.details["plan"] == "archive"
    reference = ResNetForImageClassification.from_pretrained(DIGITS).train(False)(images[:count]).logits
    batch = images[:count].to("cuda", torch.float16).contiguous(memory_format=torch.channels_last)
    logits = engine.run(batch).float().cpu()
    errors = (logits - reference).norm(dim=1) / reference.norm(dim=1)
    assert errors.max() < 1e-2
    assert torch.equal(logits.argmax(dim=1), reference.argmax(dim=1))


@pytest.fixture(scope="module")
def runner(spec: EngineSpec) -> tensorrt.PlanRunner:
    found = load("tensorrt", spec).run
    assert isinstance(found, tensorrt.PlanRunner)
    return found


def test_a_graph_gives_what_a_launch_gives(runner: tensorrt.PlanRunner, images: torch.Tensor) -> None:
    assert runner.graphed is not None
    assert runner.graphed.buckets == (1, 2, 4, 8, 16, 32, 64)
    for count in (64, 1, 3, 32, 64, 2):
        batch = images[:count].to("cuda", torch.float16).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(runner.graphed(batch), runner._at_own_size(batch), rtol=1e-2, atol=2e-2)


def test_answers_survive_later_batches(runner: tensorrt.PlanRunner, images: torch.Tensor) -> None:
    """Graphs and launches share the memory between their layers, and all graphs one input."""
    batches = [images[:count].to("cuda", torch.float16) for count in (40, 64, 1, 33, 8, 63)]
    batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    outputs = [runner(batch) for batch in batches]
    for batch, output in zip(batches, outputs, strict=True):
        torch.testing.assert_close(runner(batch), output, rtol=1e-2, atol=2e-2)
        alone = runner(batch[:1])
        torch.testing.assert_close(output[:1], alone, rtol=1e-2, atol=2e-2)


def test_tensorrt_has_nothing_to_warn_of(
    spec: EngineSpec, images: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the default stream, say, on which it waits for the whole device."""
    engine = load("tensorrt", spec)
    for count in (64, 40, 8, 1):
        engine.run(images[:count].to("cuda", torch.float16).contiguous(memory_format=torch.channels_last))
    torch.cuda.synchronize()
    assert [record.getMessage() for record in caplog.records if "stream" in record.getMessage()] == []


def test_a_plan_whose_profiles_are_not_shared_runs_without_graphs(
    spec: EngineSpec, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trt = tensorrt.tensorrt_module()
    if "STRONGLY_TYPED" in trt.NetworkDefinitionCreationFlag.__members__:
        pytest.skip("this TensorRT shares every profile")
    monkeypatch.setattr(tensorrt, "_configure_old", lambda trt, config: config.set_flag(trt.BuilderFlag.FP16))
    found = tensorrt.PlanRunner(tensorrt.build(spec), spec.buckets, spec.device)
    assert found.graphed is None
    assert "runs without CUDA graphs" in caplog.text
    for count in (1, 5, 64):
        batch = images[:count].to("cuda", torch.float16).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found(batch), load("tensorrt", spec).run(batch), rtol=1e-2, atol=2e-2)


def test_a_plan_of_another_machine(spec: EngineSpec, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    shutil.copytree(spec.model_dir, folder)
    record = json.loads((folder / "plan" / plans.RECORD).read_text(encoding="utf-8"))
    record["fingerprint"]["gpu"] = "NVIDIA Other"
    (folder / "plan" / plans.RECORD).write_text(json.dumps(record), encoding="utf-8")
    other = dataclasses.replace(spec, model_dir=folder, on_mismatch="refuse")
    with pytest.raises(plans.PlanError, match=r"gpu: plan NVIDIA Other, here NVIDIA"):
        load("tensorrt", other)
    rebuilt, started = dataclasses.replace(other, on_mismatch="rebuild"), time.monotonic()
    assert load("tensorrt", rebuilt).details["plan"] == "built here"
    print(f"with a timing cache it was built again in {time.monotonic() - started:.0f} s")
    assert load("tensorrt", rebuilt).details["plan"] == "cache"


def test_auto_measures_and_says_what_serves(spec: EngineSpec, images: torch.Tensor) -> None:
    name, engine = load_chosen("auto", spec)
    measured = engine.details["measured"]
    assert isinstance(measured, dict)
    assert set(measured["milliseconds"]["32"]) == {"cudnn", "tensorrt", "torch_eager"}
    assert set(name.split("+")) == set(measured["servedBy"].values())
    batch = images[:5].to("cuda", torch.float16).contiguous(memory_format=torch.channels_last)
    assert engine.run(batch).shape == (5, 10)


def test_torch2trt(images: torch.Tensor, cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch2trt")
    shutil.copy(DIGITS / "config.json", tmp_path)
    network = ResNetForImageClassification.from_pretrained(DIGITS).train(False)
    tensorrt_files.write(network, tmp_path, (32,), 32, "torch2trt", "auto")
    device = torch.device("cuda", 0)
    spec = EngineSpec(
        "image-classifier", tmp_path, device, "fp16", image_size=32, batch_size=32, buckets=(32,), plan_cache=cache
    )
    engine = load("tensorrt", spec)
    assert engine.details["plan"] == "archive"
    with torch.no_grad():
        reference = network(images[:64]).logits
    for count in (1, 31, 32, 64):
        batch = images[:count].to(device, torch.float16).contiguous(memory_format=torch.channels_last)
        errors = (engine.run(batch).float().cpu() - reference[:count]).norm(dim=1) / reference[:count].norm(dim=1)
        assert errors.max() < 1e-2
