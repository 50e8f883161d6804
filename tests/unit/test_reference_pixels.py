"""The parity gate has pixels of its own, so it sees a fault in the handler's preprocessing."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from archive import parity, reference_pixels, sample_images
from archive.checkpoints import image_checkpoints
from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.image_checkpoints import ImageCheckpoint
from archive.checkpoints.torchvision_releases import TORCHVISION_V1, TORCHVISION_V2
from archive.models import ImageModel
from handlers.images import batching, cropping, geometry, preparation
from handlers.images.preprocess import INTERPOLATIONS, Preprocess
from handlers.settings import ImageSettings

DIGITS = Path(sample_images.__file__).parent / "digits"
MAX_PIXELS = 50_000_000


@pytest.fixture(scope="module")
def digits() -> ImageCheckpoint:
    return image_checkpoints.read(DIGITS)


def job(checkpoint: ImageCheckpoint, preprocess: Preprocess) -> ImageModel:
    settings = ImageSettings(preprocess=preprocess)
    return ImageModel(
        name="x",
        version="1",
        torchserve={},
        settings=settings,
        weights={},
        checkpoint=checkpoint,
        labels=[str(k) for k in range(10)],
    )


@torch.inference_mode()
def served(checkpoint: ImageCheckpoint, preprocess: Preprocess, samples: list[bytes]) -> parity.Array:
    """The handler's logits."""
    batcher = batching.Batcher(preprocess, torch.device("cpu"), torch.float32)
    crops = [crop for sample in samples for crop in preparation.prepare(sample, preprocess, MAX_PIXELS)]
    logits: parity.Array = checkpoint.network()(batcher(crops)).logits.numpy()
    return logits


FAULTS = {
    "crop": (geometry, "crop_start", lambda side, size, rounding: (side - size + 1) // 2),
    "resize": (geometry, "resized_size", lambda width, height, preprocess: (preprocess.resize, preprocess.resize)),
    "interpolation": (cropping, "INTERPOLATIONS", dict.fromkeys(INTERPOLATIONS, Image.Resampling.NEAREST)),
    "colours": (
        preparation,
        "decode",
        lambda data, most: Image.open(io.BytesIO(data)).convert("RGB").convert("L").convert("RGB"),
    ),
}


@pytest.mark.parametrize("layout", ["huggingface", "timm"])
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_the_gate_sees_a_fault_of_preprocessing(
    digits: ImageCheckpoint, monkeypatch: pytest.MonkeyPatch, layout: str, fault: str | None
) -> None:
    preprocess = digits.preprocess
    assert preprocess is not None
    if layout == "timm":
        preprocess = dataclasses.replace(preprocess, crop_rounding="even")
    checkpoint = dataclasses.replace(digits, layout=layout, preprocess=preprocess)
    samples = sample_images.photographs()
    reference = job(checkpoint, preprocess).reference_outputs(samples)
    if fault:
        monkeypatch.setattr(*FAULTS[fault])
        if (layout, fault) == ("timm", "crop"):
            monkeypatch.setattr(geometry, "crop_start", lambda side, size, rounding: (side - size) // 2)
    figures = parity.compare(served(checkpoint, preprocess, samples), reference, "fp32", False, "cpu")
    assert figures.passed is (fault is None)


@pytest.mark.parametrize(
    "preprocess",
    [
        TORCHVISION_V1,
        TORCHVISION_V2,
        Preprocess(224, 235, interpolation="bicubic", crop_rounding="even"),
        Preprocess(32, 33, "square", crop_rounding="even"),
    ],
)
def test_torchvisions_steps_are_the_handlers(digits: ImageCheckpoint, preprocess: Preprocess) -> None:
    checkpoint = dataclasses.replace(digits, layout="torchvision", preprocess=None)
    pixels = reference_pixels.pixels_of(checkpoint, preprocess, MAX_PIXELS)
    batcher = batching.Batcher(preprocess, torch.device("cpu"), torch.float32)
    for sample in sample_images.photographs():
        ours = batcher(preparation.prepare(sample, preprocess, MAX_PIXELS))
        torch.testing.assert_close(ours, pixels(sample), rtol=0, atol=1e-5)


def test_what_was_changed_at_packaging_is_followed(digits: ImageCheckpoint) -> None:
    """transformers' processor knows nothing of it: its steps are taken one by one."""
    preprocess = Preprocess(32, 40, interpolation="bicubic")
    pixels = reference_pixels.pixels_of(digits, preprocess, MAX_PIXELS)
    batcher = batching.Batcher(preprocess, torch.device("cpu"), torch.float32)
    for sample in sample_images.photographs():
        ours = batcher(preparation.prepare(sample, preprocess, MAX_PIXELS))
        torch.testing.assert_close(ours, pixels(sample), rtol=0, atol=1e-5)


def test_samples_that_transformers_does_not_take_as_they_are(digits: ImageCheckpoint) -> None:
    preprocess = digits.preprocess
    assert preprocess is not None
    pixels = reference_pixels.pixels_of(digits, preprocess, MAX_PIXELS)
    batcher = batching.Batcher(preprocess, torch.device("cpu"), torch.float32)
    deep, ready = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 60).save(deep, "PNG")
    np.save(ready, np.zeros((2, 3, 32, 32), np.float16))
    for sample in (deep.getvalue(), ready.getvalue()):
        ours = batcher(preparation.prepare(sample, preprocess, MAX_PIXELS))
        torch.testing.assert_close(ours, pixels(sample), rtol=0, atol=1e-5)


def test_a_processor_that_transformers_cannot_make(digits: ImageCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "NoSuchProcessor"}', encoding="utf-8"
    )
    checkpoint = dataclasses.replace(digits, weights=tmp_path / "model.safetensors")
    assert checkpoint.preprocess is not None
    with pytest.raises(CheckpointError, match="cannot make the image processor"):
        reference_pixels.pixels_of(checkpoint, checkpoint.preprocess, MAX_PIXELS)
