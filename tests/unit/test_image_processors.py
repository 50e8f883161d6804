"""Checkpoints whose images transformers' own processor prepares: served answers are those of transformers."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextConfig,
    ImageGPTConfig,
    Siglip2Config,
    ViTConfig,
)

from archive import command_line, resolve
from archive.checkpoints.errors import CheckpointError
from archive.options import ImageClassifierOptions
from handlers import engines
from handlers.engines import EngineSpec
from handlers.images import gpu_decoder, pipelines
from handlers.images.preprocess import Preprocess
from handlers.images.processors import Processor
from handlers.selection.references import OF_ARCHIVE
from tests.image_jobs import served

Answers = list[tuple[int, Any]]
NAMES = {index: f"kind {index}" for index in range(5)}
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CLUSTERS = [[value / 4 - 1, -value / 4 + 1, (value % 3) / 2 - 0.5] for value in range(9)]
NETWORKS: dict[str, Callable[[], Any]] = {
    "convnext": lambda: ConvNextConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], initializer_range=0.3, id2label=NAMES
    ),
    "vit": lambda: ViTConfig(**SMALL, image_size=32, patch_size=8, initializer_range=0.3, id2label=NAMES),
    "siglip2": lambda: Siglip2Config(
        vision_config={**SMALL, "patch_size": 4, "num_patches": 64}, text_config=SMALL, id2label=NAMES
    ),
    "imagegpt": lambda: ImageGPTConfig(
        n_embd=16, n_layer=1, n_head=2, n_positions=64, vocab_size=10, initializer_range=0.3, id2label=NAMES
    ),
}
# By name: the network, its processor, and what of the processor's outputs is known when the archive is made.
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "crops before it resizes": (
        "convnext",
        {"image_processor_type": "PerceiverImageProcessor", "size": {"height": 64, "width": 96}},
        (64, 96),
    ),
    "pads": ("convnext", {"image_processor_type": "MobileViTImageProcessor"}, (256, 256)),
    "patches": (
        "siglip2",
        {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 4, "max_num_patches": 64},
        (0, 0),
    ),
    "colours": (
        "imagegpt",
        {"image_processor_type": "ImageGPTImageProcessor", "size": {"height": 8, "width": 8}, "clusters": CLUSTERS},
        (0, 0),
    ),
    "does not resize": ("convnext", {"image_processor_type": "ViTImageProcessor", "do_resize": False}, (0, 0)),
    "does not crop": (
        "convnext",
        {"image_processor_type": "CLIPImageProcessor", "size": 48, "do_center_crop": False},
        (0, 0),
    ),
    "does not rescale": (
        "convnext",
        {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "size": {"height": 48, "width": 48}},
        (48, 48),
    ),
}


def checkpoint(network: str, processor: Mapping[str, Any], folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForImageClassification.from_config(NETWORKS[network]()).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


def job_of(folder: Path, *arguments: object) -> Any:
    line = ["image-classifier", "--weights", str(folder), *map(str, arguments)]
    return resolve.image_model(cast("ImageClassifierOptions", command_line.parse(line)))


@torch.inference_mode()
def wanted(folder: Path, image: Image.Image) -> list[float]:
    """The probabilities of every class, by transformers."""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    network = AutoModelForImageClassification.from_pretrained(folder)
    values: list[float] = network(**processor(images=image, return_tensors="pt")).logits[0].softmax(0).tolist()
    return values


def given(answer: Sequence[Mapping[str, Any]]) -> list[float]:
    return [item["probability"] for item in sorted(answer, key=lambda item: int(item["index"]))]


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """scikit-learn's, 640 x 427, and parts of them."""
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    return [china, flower.crop((200, 60, 420, 400)), china.crop((0, 0, 300, 60)), flower]


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_transformers(
    name: str,
    tmp_path: Path,
    photographs: list[Image.Image],
    ask: Callable[..., Answers],
    caplog: pytest.LogCaptureFixture,
) -> None:
    network, config, shape = CASES[name]
    folder = checkpoint(network, config, tmp_path / "checkpoint")
    job = job_of(folder)
    assert job.settings.preprocess.shape == shape
    with caplog.at_level(logging.INFO):
        handler = served(job, tmp_path / "archive")
    own = config["image_processor_type"]
    assert handler.model.description["preprocessing"] == f"transformers' {own} on the CPU"
    assert f"images are preprocessed by transformers' {own} on the CPU" in caplog.text
    assert handler.model.description["engine"]["checked"]["against"] == OF_ARCHIVE
    answers = ask(handler, [{"body": png(image)} for image in photographs])
    assert [status for status, _ in answers] == [200] * len(photographs)
    for (_, answer), image in zip(answers, photographs, strict=True):
        assert given(answer) == pytest.approx(wanted(folder, image), abs=2e-5)
    # A whole image as an array is the image; each keeps its place among others.
    arrays = [npy(np.asarray(image)) for image in photographs[::-1]]
    again = ask(handler, [{"body": array} for array in arrays])
    for (_, answer), (_, first) in zip(again, answers[::-1], strict=True):
        assert given(answer) == pytest.approx(given(first), abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_parity_gate_compares_with_the_checkpoints_own_processor(name: str, tmp_path: Path) -> None:
    network, config, _ = CASES[name]
    job = job_of(checkpoint(network, config, tmp_path / "checkpoint"))
    samples = job.samples()[:2]
    handler = served(job, tmp_path / "archive")
    outputs = handler.run([item for sample in samples for item in handler.prepare_one(sample)])
    np.testing.assert_allclose(outputs.numpy(), job.reference_outputs(samples), rtol=1e-4, atol=1e-5)


def test_a_network_of_one_size_refuses_images_of_others(
    tmp_path: Path, photographs: list[Image.Image], ask: Callable[..., Answers]
) -> None:
    """The client of a checkpoint that does not resize has to; its neighbours in the batch are answered."""
    folder = checkpoint("vit", {"image_processor_type": "ViTImageProcessor", "do_resize": False}, tmp_path / "vit")
    job = job_of(folder)
    assert job.settings.preprocess.shape == (32, 32)
    handler = served(job, tmp_path / "archive")
    fits = photographs[0].resize((32, 32))
    rows = [fits, photographs[0], fits]
    first, refused, last = ask(handler, [{"body": png(image)} for image in rows])
    assert (refused[0], refused[1]["type"]) == (400, "InvalidImage")
    assert "takes images of 32 x 32 pixels, and this one becomes 640 x 427" in refused[1]["message"]
    assert given(first[1]) == pytest.approx(wanted(folder, fits), abs=2e-5)
    assert given(last[1]) == pytest.approx(given(first[1]), abs=1e-5)
    normalised = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float16)
    ((status, answer),) = ask(handler, [{"body": npy(normalised)}])
    assert (status, len(answer)) == (200, 2)


def test_images_that_a_network_of_any_size_does_not_take(tmp_path: Path, ask: Callable[..., Answers]) -> None:
    folder = checkpoint(*CASES["does not resize"][:2], tmp_path / "checkpoint")
    handler = served(job_of(folder), tmp_path / "archive", maxPixels=200_000)
    assert vars(handler.pipeline)["max_pixels"] == 200_000
    vars(handler.pipeline)["max_pixels"] = 10_000
    images = [Image.new("RGB", size) for size in ((100, 100), (101, 100), (210, 10), (64, 31), (64, 32))]
    good, large, strip, small, least = ask(handler, [{"body": png(image)} for image in images])
    assert good[0] == 200
    assert (large[0], large[1]["type"]) == (413, "PayloadTooLarge")
    assert "at most 10000 are taken" in large[1]["message"]
    assert (strip[0], strip[1]["type"]) == (400, "InvalidImage")
    assert "one side may be at most 20 times as long" in strip[1]["message"]
    assert (small[0], small[1]["type"]) == (400, "InvalidImage")
    assert "becomes 64 x 31 pixels, and the network takes sides of at least 32" in small[1]["message"]
    assert least[0] == 200


def test_what_grows_too_large_is_refused(
    tmp_path: Path, ask: Callable[..., Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "MAX_UNRESIZED", 10_000)
    handler = served(job_of(checkpoint(*CASES["does not crop"][:2], tmp_path / "c")), tmp_path / "archive")
    good, large = ask(handler, [{"body": png(Image.new("RGB", size))} for size in ((10, 10), (10, 60))])
    assert good[0] == 200
    assert (large[0], large[1]["type"]) == (413, "PayloadTooLarge")
    assert "would get 48 x 288 pixels; at most 10000" in large[1]["message"]


def test_tensors_are_refused_where_the_network_takes_no_pixels(tmp_path: Path, ask: Callable[..., Answers]) -> None:
    handler = served(job_of(checkpoint(*CASES["patches"][:2], tmp_path / "c")), tmp_path / "archive")
    ((status, answer),) = ask(handler, [{"body": npy(np.zeros((3, 32, 32), np.float32))}])
    assert (status, answer["type"]) == (400, "InvalidImage")
    assert "wanted: uint8, (H, W, 3) or (N, H, W, 3), RGB" in answer["message"]


def test_options_that_would_change_nothing_are_refused(tmp_path: Path) -> None:
    folder = checkpoint(*CASES["patches"][:2], tmp_path / "checkpoint")
    with pytest.raises(
        CheckpointError, match=r"Siglip2ImageProcessor preprocesses .*--size, --resize-mode would not"
    ):
        job_of(folder, "--size", 64, "--resize-mode", "square")
    assert "Siglip2ImageProcessor preprocesses images on the CPU" in " ".join(job_of(folder).notes)


@pytest.mark.parametrize(("engine", "precision"), [("cudnn", "fp16"), ("onnxruntime", "fp32"), ("tensorrt", "fp16")])
def test_other_engines_run_none_of_them(tmp_path: Path, engine: str, precision: str) -> None:
    folder = checkpoint(*CASES["patches"][:2], tmp_path / "checkpoint")
    spec = EngineSpec("image-classifier", folder, torch.device("cpu"), precision, image_size=0)
    assert "square images of one size" in str(engines.get(engine).why_never(spec))


def test_an_engine_that_runs_none_of_them_is_refused_by_name(tmp_path: Path) -> None:
    job = job_of(checkpoint(*CASES["patches"][:2], tmp_path / "checkpoint"))
    with pytest.raises(ValueError, match="square images of one size"):
        served(job, tmp_path / "archive", engine="onnxruntime")


def test_the_gpu_decodes_none_of_them() -> None:
    preprocess = Preprocess(0, 0, processor="Siglip2ImageProcessor")
    why = gpu_decoder.why_unavailable(preprocess, torch.device("cuda", 0))
    assert why == "transformers' Siglip2ImageProcessor makes the network's input, on the CPU"
    for other in (Preprocess(224, 224, width=100), Preprocess(224, 256, channel_order="bgr")):
        assert "square crops in RGB" in str(gpu_decoder.why_unavailable(other, torch.device("cuda", 0)))


def test_another_processor_than_the_settings_name_is_refused(tmp_path: Path) -> None:
    checkpoint(*CASES["patches"][:2], tmp_path)
    with pytest.raises(ValueError, match=r"describes Siglip2ImageProcessor, and model-config\.yaml names Other"):
        pipelines.load(tmp_path, Preprocess(0, 0, processor="Other"), 100, torch.device("cpu"), torch.float32)


def test_an_image_three_pixels_high_is_read_as_rows(tmp_path: Path) -> None:
    """(3, W, 3) could be taken for an image of three channels."""
    checkpoint("convnext", {"image_processor_type": "ViTImageProcessor", "do_resize": False}, tmp_path)
    image = Image.fromarray(np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3))
    pixels = Processor(tmp_path)(image)["pixel_values"]
    assert pixels.shape == (3, 3, 5)
    assert (pixels[:, 2, 4] * 0.5 + 0.5).mul(255).round().tolist() == list(image.getpixel((4, 2)))  # type: ignore[arg-type]
