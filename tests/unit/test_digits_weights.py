"""The committed digit weights, read by plain transformers, do what their model card says."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import train_digits
from PIL import Image
from transformers import AutoImageProcessor, ResNetForImageClassification

DIGITS = Path(__file__).parents[2] / "archive" / "digits"


@pytest.fixture(scope="module")
def model() -> ResNetForImageClassification:
    loaded: ResNetForImageClassification = ResNetForImageClassification.from_pretrained(DIGITS)
    assert not loaded.training
    return loaded


def preprocess(image: Image.Image) -> train_digits.Floats:
    """What preprocessor_config.json says of a square image, step by step: float32 [3, 32, 32]."""
    config = json.loads((DIGITS / "preprocessor_config.json").read_text(encoding="utf-8"))
    side = int(config["size"]["shortest_edge"] / config["crop_pct"])
    resized = image.convert("RGB").resize((side, side), Image.Resampling(config["resample"]))
    scaled = np.asarray(resized).astype(np.float32) * np.float32(config["rescale_factor"])
    mean, std = np.float32(config["image_mean"]), np.float32(config["image_std"])
    return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1))


@torch.inference_mode()
def read(model: ResNetForImageClassification, images: list[Image.Image]) -> list[str]:
    batch = torch.from_numpy(np.stack([preprocess(image) for image in images]))
    logits = model(pixel_values=batch).logits
    names = model.config.id2label
    assert names is not None
    return [names[index] for index in logits.argmax(dim=1).tolist()]


def accuracy(model: ResNetForImageClassification, images: list[Image.Image]) -> float:
    labels = train_digits.split().held_out_labels
    return float(np.mean([int(name) == label for name, label in zip(read(model, images), labels, strict=True)]))


def test_reads_the_held_out_digits(model: ResNetForImageClassification) -> None:
    images = [Image.fromarray(digit) for digit in train_digits.split().held_out_images]
    assert accuracy(model, images) >= 0.97


def test_reads_the_held_out_digits_from_enlarged_png_files(model: ResNetForImageClassification) -> None:
    files = [train_digits.digit_png(digit) for digit in train_digits.split().held_out_images]
    assert accuracy(model, [Image.open(io.BytesIO(file)) for file in files]) >= 0.97


@pytest.mark.parametrize(("name", "label"), [("three", "3"), ("seven", "7")])
def test_reads_the_samples(model: ResNetForImageClassification, name: str, label: str) -> None:
    with Image.open(DIGITS / "samples" / f"{name}.png") as image:
        assert image.size == (64, 64)
        assert read(model, [image]) == [label]


def test_labels_are_the_digits(model: ResNetForImageClassification) -> None:
    assert model.config.id2label == {digit: str(digit) for digit in range(10)}
    assert model.config.label2id == {str(digit): digit for digit in range(10)}


def test_weights_are_small_finite_and_single_precision(model: ResNetForImageClassification) -> None:
    assert (DIGITS / "model.safetensors").stat().st_size < 2_000_000
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())


def test_transformers_preprocesses_alike() -> None:
    image = train_digits.enlarge(train_digits.split().held_out_images[0], 64)
    processor = AutoImageProcessor.from_pretrained(DIGITS)
    pixels = processor(image, return_tensors="np")["pixel_values"][0]
    # transformers resizes with torchvision where that is installed; it may round a grey level differently.
    grey_level = 1 / 255 / train_digits.STD
    np.testing.assert_allclose(pixels, preprocess(image), rtol=0, atol=1.5 * grey_level)


def test_the_split_is_reproducible_and_stratified() -> None:
    first, again = train_digits.split(), train_digits.split()
    np.testing.assert_array_equal(first.held_out_images, again.held_out_images)
    np.testing.assert_array_equal(first.train_labels, again.train_labels)
    assert first.held_out_images.dtype == np.uint8
    assert first.held_out_images.shape == (360, 8, 8)
    assert first.train_images.shape == (1437, 8, 8)
    assert first.held_out_images.max() == 255
    assert np.bincount(first.held_out_labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    held_out = {digit.tobytes() for digit in first.held_out_images}
    assert not any(digit.tobytes() in held_out for digit in first.train_images)
