"""Images as transformers' own steps prepare them: load_image, then its image processors on Pillow."""

from __future__ import annotations

import inspect
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_digits
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import AutoImageProcessor, ResNetForImageClassification
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from archive.checkpoints.preprocess_configs import read_preprocess
from handlers.image_classifier import ImageClassifier
from handlers.images import batching, preparation
from handlers.images.preprocess import Preprocess

ARCHIVE = Path(__file__).parents[2] / "archive"
DIGITS = ARCHIVE / "digits"
MAX_PIXELS = 50_000_000
ORIENTATION = 0x0112

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CONFIGS: dict[str, dict[str, Any]] = {
    "digits": json.loads((DIGITS / "preprocessor_config.json").read_text(encoding="utf-8")),
    "resnet": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 224},
        "crop_pct": 0.875,
        "resample": 3,
        **IMAGENET,
    },
    "resnet-old-file": {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "resample": 3, **IMAGENET},
    "convnext-384": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, **IMAGENET},
    "vit-square": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
    "clip": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "resample": 3,
    },
    "deit": {
        "image_processor_type": "DeiTImageProcessor",
        "size": {"height": 256, "width": 256},
        "crop_size": {"height": 224, "width": 224},
        "resample": 3,
        **IMAGENET,
    },
    "bit": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "resample": 2,
        **IMAGENET,
    },
    "efficientnet": {  # google/efficientnet-b0, whose means and resampling are others
        "image_processor_type": "EfficientNetImageProcessor",
        "size": {"height": 224, "width": 224},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.47853944, 0.4732864, 0.47434163],
        "resample": 0,
    },
    "efficientnet-no-top": {
        "image_processor_type": "EfficientNetImageProcessor",
        "size": {"height": 224, "width": 224},
        "include_top": False,
    },
    "mobilenet": {"image_processor_type": "MobileNetV2ImageProcessor"},
    "mobilenet-v1": {
        "image_processor_type": "MobileNetV1ImageProcessor",
        "size": {"shortest_edge": 192},
        "crop_size": 160,
    },
    "beit": {"image_processor_type": "BeitImageProcessor"},
    "pvt": {"image_processor_type": "PvtImageProcessor"},
    "siglip": {"image_processor_type": "SiglipImageProcessor"},
    "mobilevit": {
        "image_processor_type": "MobileViTImageProcessor",
        "size": {"shortest_edge": 288},
        "crop_size": {"height": 256, "width": 256},
    },
    "mobilevit-rgb": {
        "feature_extractor_type": "MobileViTFeatureExtractor",
        "size": 140,
        "crop_size": 128,
        "do_flip_channel_order": False,
        "resample": 2,
    },
    "poolformer": {"image_processor_type": "PoolFormerImageProcessor"},
    "poolformer-square": {
        "image_processor_type": "PoolFormerImageProcessor",
        "size": {"height": 200, "width": 200},
        "crop_size": 192,
        "crop_pct": 0.95,
    },
    "poolformer-wide": {
        "image_processor_type": "PoolFormerImageProcessor",
        "size": {"height": 160, "width": 224},
        "crop_size": {"height": 160, "width": 200},
    },
    "levit": {"image_processor_type": "LevitImageProcessor"},
    "levit-feature-extractor": {
        "feature_extractor_type": "LevitFeatureExtractor",
        "size": {"shortest_edge": 192},
        "crop_size": {"height": 160, "width": 192},
    },
    "levit-squashed": {"image_processor_type": "LevitImageProcessor", "size": {"height": 230, "width": 240}},
    "segformer": {"image_processor_type": "SegformerImageProcessor"},
    "segformer-ignores-crops": {
        "image_processor_type": "SegformerImageProcessor",
        "size": {"height": 96, "width": 128},
        "do_center_crop": True,
        "crop_size": 64,
    },
    "vit-wide": {"image_processor_type": "ViTImageProcessor", "size": {"height": 128, "width": 320}},
    "bit-tall": {"image_processor_type": "BitImageProcessor", "crop_size": {"height": 224, "width": 97}},
    "deit-wide": {
        "image_processor_type": "DeiTImageProcessor",
        "size": {"height": 130, "width": 250},
        "crop_size": {"height": 97, "width": 224},
    },
}
# All formats through all of them would tell nothing new: they differ in sizes and statistics.
FORMATTED = (
    "digits",
    "resnet",
    "resnet-old-file",
    "convnext-384",
    "vit-square",
    "clip",
    "deit",
    "bit",
    "vit-wide",
    "mobilevit",
)


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Preprocess]]:
    """For each config, transformers' processor of it and ours."""
    pairs = {}
    for name, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
        pairs[name] = (pillow_processor(folder), read_preprocess(config))
    return pairs


@pytest.fixture(scope="module")
def china() -> Image.Image:
    return photograph("china.jpg")


def pillow_processor(folder: Path) -> Any:
    """The image processor of a folder with preprocessor_config.json, on Pillow."""
    return AutoImageProcessor.from_pretrained(folder, backend="pil")


def photograph(name: str) -> Image.Image:
    """A photograph of scikit-learn's, 640 x 427."""
    found = load_sample_images()
    names = [Path(filename).name for filename in found.filenames]
    return Image.fromarray(found.images[names.index(name)])


def theirs(data: bytes, processor: Any) -> torch.Tensor:
    """(1, 3, S, S), by transformers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)
        image = load_image(Image.open(io.BytesIO(data)))
    pixels: torch.Tensor = processor(images=image, return_tensors="pt").pixel_values
    return pixels


def ours(data: bytes, preprocess: Preprocess) -> torch.Tensor:
    """(1, 3, S, S), by the handler."""
    return batching.Batcher(preprocess, torch.device("cpu"), torch.float32)(
        preparation.prepare(data, preprocess, MAX_PIXELS)
    )


def assert_same(data: bytes, pair: tuple[Any, Preprocess]) -> None:
    torch.testing.assert_close(ours(data, pair[1]), theirs(data, pair[0]), rtol=0, atol=1e-5)


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_name, **options)
    return stream.getvalue()


def rotated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def with_alpha(image: Image.Image, mode: str = "RGBA") -> Image.Image:
    """The image with an alpha channel that falls from left to right."""
    alpha = Image.linear_gradient("L").rotate(90).resize(image.size)
    converted = image.convert(mode)
    converted.putalpha(alpha)
    return converted


def animation(image: Image.Image) -> dict[str, Any]:
    return {"save_all": True, "append_images": [image.rotate(180)], "duration": 100}


FORMATS: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg": lambda image: encoded(image, "JPEG", quality=90),
    "jpeg-progressive-420": lambda image: encoded(image, "JPEG", progressive=True, subsampling="4:2:0"),
    "jpeg-grey": lambda image: encoded(image.convert("L"), "JPEG"),
    "jpeg-cmyk": lambda image: encoded(image.convert("CMYK"), "JPEG"),
    "png": lambda image: encoded(image, "PNG"),
    "png-grey": lambda image: encoded(image.convert("L"), "PNG"),
    "png-grey-alpha": lambda image: encoded(with_alpha(image, "LA"), "PNG"),
    "png-rgba": lambda image: encoded(with_alpha(image), "PNG"),
    "png-palette": lambda image: encoded(image.quantize(64), "PNG"),
    "png-palette-transparent-colour": lambda image: encoded(image.quantize(64), "PNG", transparency=3),
    "png-palette-alpha": lambda image: encoded(image.quantize(64), "PNG", transparency=bytes(range(0, 256, 4))),
    "png-transparent-colour": lambda image: encoded(image, "PNG", transparency=(10, 20, 30)),
    "png-black-and-white": lambda image: encoded(image.convert("1"), "PNG"),
    "webp": lambda image: encoded(image, "WEBP", quality=80),
    "webp-lossless-rgba": lambda image: encoded(with_alpha(image), "WEBP", lossless=True),
    "webp-animated": lambda image: encoded(image, "WEBP", **animation(image)),
    "gif": lambda image: encoded(image, "GIF"),
    "gif-grey": lambda image: encoded(image.convert("L"), "GIF"),
    "gif-transparent": lambda image: encoded(with_alpha(image), "GIF"),
    "gif-animated": lambda image: encoded(image, "GIF", **animation(image)),
    "bmp": lambda image: encoded(image, "BMP"),
    "bmp-grey": lambda image: encoded(image.convert("L"), "BMP"),
    "bmp-palette": lambda image: encoded(image.quantize(16), "BMP"),
    "tiff": lambda image: encoded(image, "TIFF"),
    "tiff-lzw": lambda image: encoded(image, "TIFF", compression="tiff_lzw"),
    "tiff-grey": lambda image: encoded(image.convert("L"), "TIFF"),
    "tiff-cmyk": lambda image: encoded(image.convert("CMYK"), "TIFF"),
    "tiff-rgba": lambda image: encoded(with_alpha(image), "TIFF"),
    "tiff-palette": lambda image: encoded(image.quantize(64), "TIFF"),
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("photo", ["china.jpg", "flower.jpg"])
def test_photographs_in_every_kind_of_preprocessing(
    processors: dict[str, tuple[Any, Preprocess]], photo: str, config: str
) -> None:
    assert_same((ARCHIVE / "samples" / photo).read_bytes(), processors[config])
    assert_same(encoded(photograph(photo), "PNG"), processors[config])


# CLIP's and BiT's processors convert to RGB once more, and see the transparent colour that load_image left noted.
PAINTED = [
    (kind, config)
    for kind in ("png-transparent-colour", "png-palette-transparent-colour")
    for config in ("clip", "bit")
]


@pytest.mark.parametrize(
    ("kind", "config"), [(kind, config) for kind in FORMATS for config in FORMATTED if (kind, config) not in PAINTED]
)
def test_formats_and_colours(
    processors: dict[str, tuple[Any, Preprocess]], china: Image.Image, kind: str, config: str
) -> None:
    assert_same(FORMATS[kind](china), processors[config])


@pytest.mark.parametrize(("kind", "config"), PAINTED)
def test_a_transparent_colour_is_kept_where_clip_and_bit_paint_it_white_and_alpha_they_drop(
    processors: dict[str, tuple[Any, Preprocess]], china: Image.Image, kind: str, config: str
) -> None:
    processor, preprocess = processors[config]
    data = FORMATS[kind](china)
    opaque = load_opaque(data)
    torch.testing.assert_close(ours(data, preprocess), theirs(opaque, processor), rtol=0, atol=1e-5)
    difference = (theirs(data, processor) - theirs(opaque, processor)).abs().max()
    if "return_numpy" in inspect.signature(convert_to_rgb).parameters:  # those releases paint; 5.20 keeps it as well
        assert difference > 0.1
    else:
        assert difference == 0
    assert_same(encoded(with_alpha(china), "PNG"), processors[config])


def load_opaque(data: bytes) -> bytes:
    """The PNG without the note of which colour is transparent."""
    with Image.open(io.BytesIO(data)) as image:
        colours = image.convert("RGBA").convert("RGB")
    colours.info.clear()
    return encoded(colours, "PNG")


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(
    processors: dict[str, tuple[Any, Preprocess]], china: Image.Image, format_name: str, orientation: int
) -> None:
    data = encoded(china.resize((160, 107)), format_name, exif=rotated(orientation))
    assert_same(data, processors["resnet"])
    if orientation > 1:  # and the tag does reach the decoder
        plain = encoded(china.resize((160, 107)), format_name)
        assert not torch.allclose(ours(data, processors["resnet"][1]), ours(plain, processors["resnet"][1]))


@pytest.mark.parametrize("config", ["digits", "resnet", "vit-square", "clip"])
@pytest.mark.parametrize(
    "size",
    [
        (225, 224),
        (224, 225),
        (257, 256),
        (640, 213),
        (213, 640),
        (601, 200),
        (5, 7),
        (7, 5),
        (1, 3),
        (1, 1),
        (999, 31),
    ],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
def test_odd_sizes(
    processors: dict[str, tuple[Any, Preprocess]], china: Image.Image, size: tuple[int, int], config: str
) -> None:
    assert_same(encoded(china.resize(size), "PNG"), processors[config])


@pytest.mark.parametrize("config", ["digits", "resnet"])
def test_digits_in_several_sizes(processors: dict[str, tuple[Any, Preprocess]], config: str) -> None:
    for place, digit in enumerate(train_digits.split().held_out_images[:12]):
        assert_same(train_digits.digit_png(digit, scale=1 + place), processors[config])
        assert_same(encoded(Image.fromarray(digit), "PNG"), processors[config])


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_where_transformers_clips_it(
    processors: dict[str, tuple[Any, Preprocess]], china: Image.Image, format_name: str
) -> None:
    grey = china.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    data = encoded(deep, format_name)
    scaled = ours(encoded(grey, "PNG"), processors["resnet"][1])
    torch.testing.assert_close(ours(data, processors["resnet"][1]), scaled, rtol=0, atol=1e-5)
    clipped = Image.fromarray(np.where(np.asarray(grey) > 0, 255, 0).astype(np.uint8))
    torch.testing.assert_close(
        theirs(data, processors["resnet"][0]), theirs(encoded(clipped, "PNG"), processors["resnet"][0])
    )


@pytest.fixture(scope="module")
def digits(serve_images: Callable[..., ImageClassifier]) -> ImageClassifier:
    return serve_images(DIGITS)


@torch.inference_mode()
def test_logits_are_those_of_transformers(digits: ImageClassifier) -> None:
    model = ResNetForImageClassification.from_pretrained(DIGITS)
    processor = pillow_processor(DIGITS)
    files = [train_digits.digit_png(digit) for digit in train_digits.split().held_out_images[:64]]
    files += [path.read_bytes() for path in sorted((ARCHIVE / "samples").glob("*.jpg"))]
    wanted = torch.cat([model(theirs(file, processor)).logits for file in files])
    logits = digits.run([item for file in files for item in digits.prepare_one(file)])
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_logits_do_not_depend_on_the_batch(
    digits: ImageClassifier, serve_images: Callable[..., ImageClassifier]
) -> None:
    crops = [
        item
        for digit in train_digits.split().held_out_images[:33]
        for item in digits.prepare_one(train_digits.digit_png(digit))
    ]
    whole = digits.run(crops)
    single = torch.cat([digits.run([crop]) for crop in crops])
    cut = serve_images(DIGITS, microBatch=8).run(crops)
    torch.testing.assert_close(single, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_ready_tensors_of_transformers_give_the_logits_of_their_images(digits: ImageClassifier) -> None:
    processor = pillow_processor(DIGITS)
    files = [train_digits.digit_png(digit) for digit in train_digits.split().held_out_images[:4]]
    stream = io.BytesIO()
    np.save(stream, torch.cat([theirs(file, processor) for file in files]).numpy())
    ready = digits.run(digits.prepare_one(stream.getvalue()))
    logits = digits.run([item for file in files for item in digits.prepare_one(file)])
    torch.testing.assert_close(ready, logits, rtol=0, atol=1e-5)
