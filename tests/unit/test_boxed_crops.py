"""Crops in half precision: only what the crop shows is resized, nearly with the pixels of the whole image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from archive import parity, sample_images
from archive.checkpoints import image_checkpoints
from handlers.images import batching, cropping, formats, preparation
from handlers.images.formats.orientation import turned
from handlers.images.geometry import placement
from handlers.images.pipelines import OwnSteps
from handlers.images.preprocess import INTERPOLATIONS, Preprocess

SAMPLES = Path(sample_images.__file__).parent / "samples"
MAX_PIXELS = 50_000_000
SIZES = [(500, 375), (375, 500), (333, 500), (500, 333), (640, 640), (1280, 960), (178, 178), (300, 420), (90, 700)]
IN_BOX = [  # the sizes for which Pillow takes both ways in the same order, and others
    ((500, 375), True),
    ((375, 500), True),
    ((1080, 1920), True),
    ((333, 500), False),
    ((300, 420), False),
]


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    with Image.open(SAMPLES / "china.jpg") as image:
        return image.convert("RGB")


def whole(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    """The crop of the image, resized as a whole."""
    placed = placement(image.width, image.height, preprocess)
    height, width = preprocess.shape
    resized = image.resize((placed.width, placed.height), INTERPOLATIONS[preprocess.interpolation])
    return np.asarray(resized.crop((placed.left, placed.top, placed.left + width, placed.top + height)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(224, 256),
        Preprocess(224, 232, crop_rounding="even"),
        Preprocess(224, 235),
        Preprocess(224, 224),
        Preprocess(224, 256, "square"),
        Preprocess(160, 180, "square", width=210, resize_width=231),
    ],
    ids=lambda chosen: f"{chosen.resize}-{chosen.resize_mode}-{chosen.crop_rounding}",
)
def test_a_boxs_crop_is_nearly_that_of_the_whole(
    photo: Image.Image, size: tuple[int, int], preprocess: Preprocess, interpolation: str
) -> None:
    chosen = Preprocess(**{**vars(preprocess), "interpolation": interpolation})
    image = photo.resize(size, Image.Resampling.BICUBIC)
    wanted = whole(image, chosen)
    assert np.array_equal(cropping.crop(image, chosen), wanted)
    difference = np.abs(cropping.crop(image, chosen, exact=False).astype(int) - wanted)
    assert difference.max() <= (2 if interpolation in cropping.CONTINUOUS else 0)
    assert (difference > 0).mean() <= 0.02
    assert (difference > 1).mean() <= 1e-4


@pytest.mark.parametrize(("size", "in_box"), IN_BOX)
def test_a_box_is_taken_if_rows_and_columns_are_resized_in_the_same_order(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], in_box: bool
) -> None:
    """Pillow rounds between the two. In the other order a value in five would differ."""
    taken = boxes(monkeypatch)
    cropping.crop(photo.resize(size), Preprocess(224, 256), exact=False)
    assert taken == ([(224, 224)] if in_box else [])


def boxes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes to which boxes are resized from now on."""
    taken: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def recorded(image: Image.Image, size: tuple[int, int], *more: object, **named: object) -> Image.Image:
        if "box" in named:
            taken.append(size)
        return resize(image, size, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", recorded)
    return taken


@pytest.mark.parametrize(("dtype", "count"), [(torch.float32, 0), (torch.float16, 1), (torch.bfloat16, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "npy"])
def test_half_precision_takes_boxes_and_fp32_the_libraries_pixels(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, count: int, kind: str
) -> None:
    stream = io.BytesIO()
    if kind == "npy":
        np.save(stream, np.asarray(photo))
    else:
        photo.save(stream, kind)
    taken = boxes(monkeypatch)
    steps = OwnSteps(Preprocess(224, 256), MAX_PIXELS, torch.device("cpu"), dtype)
    assert steps.prepare(stream.getvalue())[0].shape == (224, 224, 3)
    assert len(taken) == count
    assert ("only the part that is seen is resized" in steps.description) is bool(count)


@torch.inference_mode()
def test_the_answers_stay_far_within_half_precisions_limit() -> None:
    """Here by 2e-4 and more of the logits: beyond fp32's limit (1e-4), and far within fp16's (1e-2)."""
    network = image_checkpoints.read(SAMPLES.parent / "digits").network()
    preprocess = Preprocess(224, 232)  # the digits' network takes any size
    batcher = batching.Batcher(preprocess, torch.device("cpu"), torch.float32)
    exact, boxed = (
        network(
            batcher(
                [
                    crop
                    for file in sample_images.photographs()
                    for crop in preparation.prepare(file, preprocess, MAX_PIXELS, exact=way)
                ]
            )
        ).logits.numpy()
        for way in (True, False)
    )
    assert 0 < parity.relative_errors(boxed, exact).max() < 1e-3
    assert parity.compare(boxed, exact, "fp16", False, "cpu").passed


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_an_upright_picture_in_rgb_is_not_copied(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    stream = io.BytesIO()
    photo.save(stream, kind)
    copies: list[str] = []
    for name in ("convert", "transpose", "copy", "crop", "rotate", "_new"):
        _count_calls(monkeypatch, name, copies)
    image = formats.decode(stream.getvalue(), MAX_PIXELS)
    assert (image.mode, image.size) == ("RGB", photo.size)
    assert copies == []
    turned(image, 6)  # and such a copy would be seen
    assert copies[0] == "transpose"


def _count_calls(monkeypatch: pytest.MonkeyPatch, name: str, calls: list[str]) -> None:
    method = getattr(Image.Image, name)

    def counted(*values: object, **named: object) -> object:
        calls.append(name)
        return method(*values, **named)

    monkeypatch.setattr(Image.Image, name, counted)
