"""Reads image preprocessing as Hugging Face and timm checkpoints describe it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.image_processors import by_transformers
from archive.checkpoints.json_files import read_json, refuse_custom_code
from handlers.images.preprocess import Preprocess
from handlers.misfits import listed

Triple = tuple[float, float, float]

# PIL.Image.Resampling, whose numbers preprocessor_config.json holds.
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
HALF: Triple = (0.5, 0.5, 0.5)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
BY_HAND = "Write the preprocessing down by hand if it can be approximated"

SWITCHES = (("do_resize", True), ("do_rescale", True), ("rescale_offset", False), ("do_pad", False))


class _Geometry(NamedTuple):
    """Crop and resize in pixels, and Preprocess's resize_mode.

    resize_width: as `resize` if the mode is shortest_edge.
    """

    height: int
    width: int
    resize: int
    resize_width: int
    mode: str


def folder_preprocess(folder: Path) -> Preprocess | None:
    """Return the preprocessing that a Hugging Face folder describes; None if it describes none.

    As in transformers' get_image_processor_dict, "image_processor" in processor_config.json (as newer releases save
    a processor) comes before preprocessor_config.json. What Preprocess cannot express, transformers' own processor
    does when the archive is served.

    Raises:
        CheckpointError: for code of the checkpoint's own, and as `read_preprocess` if transformers cannot process
            images either.
    """
    whole, own = folder / "processor_config.json", folder / "preprocessor_config.json"
    content: object = read_json(whole).get("image_processor") if whole.is_file() else None
    if content is None and not own.is_file():
        return None
    name = own.name if content is None else f"image_processor in {whole.name}"
    content = read_json(own) if content is None else content
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{name} is a {type(content).__name__}, wanted an object")
    refuse_custom_code(content, name)
    try:
        return read_preprocess(content)
    except CheckpointError as problem:
        return by_transformers(folder, problem)


def read_preprocess(config: Mapping[str, object]) -> Preprocess:
    """Read the content of a Hugging Face preprocessor_config.json.

    Processors of _FAMILIES are understood, under their new and old class names. A setting that the file leaves out
    has its class's default. A file that names no class is ConvNext's, which is ResNet's default.

    Raises:
        CheckpointError: with the setting's name, for what Preprocess cannot express: no resizing, no rescaling to
            0..1, padding, crops larger than the image, another processor class.
    """
    family = _family(config)
    _refuse_switches(config)
    flips = _flips(config, family)
    found = family.geometry(config, family)
    _refuse_larger_crop(found)
    mean = _triple("image_mean", _or(config, "image_mean", family.mean))
    std = _std("image_std", _or(config, "image_std", family.std))
    if not family.normalises or _or(config, "do_normalize", True) is False:
        mean, divisor = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    else:
        divisor = std
    if family.divides_twice and _or(config, "include_top", True) is True:
        divisor = (divisor[0] * std[0], divisor[1] * std[1], divisor[2] * std[2])
    return Preprocess(
        size=found.height,
        resize=found.resize,
        resize_mode=found.mode,
        width=found.width if found.width != found.height else 0,
        resize_width=found.resize_width if found.resize_width != found.resize else 0,
        channel_order="bgr" if flips else "rgb",
        interpolation=_resample(_or(config, "resample", family.resample)),
        mean=mean,
        std=divisor,
    )


def read_timm_preprocess(pretrained_cfg: Mapping[str, object]) -> Preprocess:
    """Read the pretrained_cfg of a timm model as timm evaluates with it.

    input_size (3, S, S), crop_pct, crop_mode "center", interpolation, mean and std are read. Their defaults are those
    of timm.data.resolve_data_config. The resized edge is floor(S / crop_pct) as in
    timm.data.transforms_factory.transforms_imagenet_eval. test_input_size and test_crop_pct are not read.

    Raises:
        CheckpointError: with the setting's name, for what Preprocess cannot express.
    """
    size = timm_size(_set(pretrained_cfg, "input_size", (3, 224, 224)))
    crop_mode = _set(pretrained_cfg, "crop_mode", "center")
    if crop_mode != "center":
        raise CheckpointError(f'crop_mode {crop_mode!r} cannot be expressed, wanted "center". {BY_HAND}')
    interpolation = _set(pretrained_cfg, "interpolation", "bicubic")
    if interpolation not in RESAMPLING.values():
        raise CheckpointError(f"interpolation {interpolation!r} is none of {listed(RESAMPLING.values())}")
    resize = math.floor(size / _fraction(_set(pretrained_cfg, "crop_pct", 0.875)))
    _refuse_larger_crop(_Geometry(size, size, resize, resize, "shortest_edge"))
    return Preprocess(
        size=size,
        resize=resize,
        resize_mode="shortest_edge",
        interpolation=str(interpolation),
        mean=_triple("mean", _set(pretrained_cfg, "mean", IMAGENET_MEAN)),
        std=_std("std", _set(pretrained_cfg, "std", IMAGENET_STD)),
        crop_rounding="even",
    )


def _or(config: Mapping[str, object], key: str, default: object) -> object:
    value = config.get(key)
    return default if value is None else value


def _set(config: Mapping[str, object], key: str, default: object) -> object:
    # timm takes an empty or zero setting as not given.
    return config.get(key) or default


def _family(config: Mapping[str, object]) -> _Family:
    name = _or(config, "image_processor_type", _or(config, "feature_extractor_type", "ConvNextImageProcessor"))
    short = str(name)
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        short = short.removesuffix(ending)
    if short not in _FAMILIES:
        raise CheckpointError(
            f"image_processor_type {name!r} is not known here, wanted one for {listed(_FAMILIES)}. {BY_HAND}"
        )
    return _FAMILIES[short]


def _refuse_switches(config: Mapping[str, object]) -> None:
    for key, wanted in SWITCHES:
        if _or(config, key, wanted) is not wanted:
            raise CheckpointError(f"{key} {config[key]!r} cannot be expressed, wanted {wanted}. {BY_HAND}")
    factor = _or(config, "rescale_factor", 1 / 255)
    if not _is_number(factor) or not math.isclose(cast("float", factor), 1 / 255, rel_tol=1e-4):
        raise CheckpointError(f"rescale_factor {factor!r} cannot be expressed, wanted 1/255. {BY_HAND}")


def _flips(config: Mapping[str, object], family: _Family) -> bool:
    """Whether the network gets BGR."""
    flips = _or(config, "do_flip_channel_order", family.flips or False) is True
    if flips and family.flips is None:
        raise CheckpointError("do_flip_channel_order (BGR images) is not a setting of this class, wanted RGB")
    return flips


def _convnext_geometry(config: Mapping[str, object], family: _Family) -> _Geometry:
    sides, mode = _edge("size", _or(config, "size", family.size), square=False)
    size = sides[0]
    if mode != "shortest_edge":
        raise CheckpointError(f'size {config["size"]!r} is not what ConvNext takes, wanted {{"shortest_edge": S}}')
    if _or(config, "do_center_crop", False) is True and _sides("crop_size", config.get("crop_size")) != (size, size):
        raise CheckpointError(
            f"crop_size {config.get('crop_size')!r} after a crop to {size} cannot be expressed. {BY_HAND}"
        )
    if size >= 384:
        return _Geometry(size, size, size, size, "square")
    edge = int(size / _fraction(_or(config, "crop_pct", 224 / 256)))
    return _Geometry(size, size, edge, edge, "shortest_edge")


def _poolformer_geometry(config: Mapping[str, object], family: _Family) -> _Geometry:
    """PoolFormerImageProcessor.resize: `size` over crop_pct; the shortest edge if `size` is a square."""
    (height, width), mode = _edge("size", _or(config, "size", family.size), square=False)
    part = _fraction(_or(config, "crop_pct", 0.9))
    mode = "shortest_edge" if height == width else mode
    return _cropped(config, family, (int(height / part), int(width / part)), mode)


def _geometry(config: Mapping[str, object], family: _Family) -> _Geometry:
    square = _or(config, "default_to_square", family.square) is True
    (height, width), mode = _edge("size", _or(config, "size", family.size), square)
    if mode == "shortest_edge":
        height = width = int(family.scale * height)
    return _cropped(config, family, (height, width), mode)


def _uncropped_geometry(config: Mapping[str, object], family: _Family) -> _Geometry:
    """Return the geometry for a class that does not crop, whatever do_center_crop says."""
    return _geometry({**config, "do_center_crop": False}, family)


def _cropped(config: Mapping[str, object], family: _Family, resized: tuple[int, int], mode: str) -> _Geometry:
    if _or(config, "do_center_crop", family.crop is not None) is True:
        return _Geometry(*_sides("crop_size", _or(config, "crop_size", family.crop)), *resized, mode)
    if mode == "shortest_edge":
        raise CheckpointError(f"do_center_crop False leaves images of many shapes (size {resized[0]}). {BY_HAND}")
    return _Geometry(*resized, *resized, mode)


def _edge(key: str, value: object, square: bool) -> tuple[tuple[int, int], str]:
    """Return ((height, width) in pixels, resize_mode) for a size. square: whether a bare number means a square."""
    if isinstance(value, Mapping):
        given = {name: edge for name, edge in value.items() if edge is not None}
        if set(given) == {"shortest_edge"}:
            return (_pixels(key, given["shortest_edge"]),) * 2, "shortest_edge"
        return _sides(key, given), "square"
    if isinstance(value, (list, tuple)) or square:
        return _sides(key, value), "square"
    return (_pixels(key, value),) * 2, "shortest_edge"


def _sides(key: str, value: object) -> tuple[int, int]:
    """Return height and width in pixels."""
    sides: object = value
    if isinstance(value, Mapping):
        given = {name: edge for name, edge in value.items() if edge is not None}
        sides = [given["height"], given["width"]] if set(given) == {"height", "width"} else None
    elif not isinstance(value, (list, tuple)):
        sides = [value, value]
    if not isinstance(sides, (list, tuple)) or len(sides) != 2:
        raise CheckpointError(f"{key} {value!r} cannot be expressed, wanted a height and a width. {BY_HAND}")
    return _pixels(key, sides[0]), _pixels(key, sides[1])


def timm_size(value: object) -> int:
    """Return the side of timm's input_size in pixels. Raises CheckpointError if it is not (3, S, S)."""
    if not isinstance(value, (list, tuple)) or len(value) != 3 or value[0] != 3 or value[1] != value[2]:
        raise CheckpointError(f"input_size {value!r} cannot be expressed, wanted (3, S, S). {BY_HAND}")
    return _pixels("input_size", value[1])


def _refuse_larger_crop(found: _Geometry) -> None:
    """Raise CheckpointError for a crop that would need padding."""
    if found.height > found.resize or found.width > found.resize_width:
        raise CheckpointError(
            f"a crop of {found.height} x {found.width} is larger than the image resized to {found.resize} x "
            f"{found.resize_width}: check crop_pct, size"
        )


def _pixels(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{key}: {value!r} is not a number of pixels")
    return value


def _fraction(value: object) -> float:
    if not _is_number(value) or not 0 < cast("float", value) <= 1:
        raise CheckpointError(f"crop_pct {value!r} is not in (0, 1]")
    return float(cast("float", value))


def _resample(value: object) -> str:
    if not isinstance(value, int) or isinstance(value, bool) or value not in RESAMPLING:
        raise CheckpointError(f"resample {value!r} is none of {RESAMPLING}")
    return RESAMPLING[value]


def _triple(key: str, value: object) -> Triple:
    values = [value] * 3 if _is_number(value) else value
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(map(_is_number, values)):
        raise CheckpointError(f"{key} {value!r} is neither a number nor three of them")
    return (float(values[0]), float(values[1]), float(values[2]))


def _std(key: str, value: object) -> Triple:
    triple = _triple(key, value)
    if min(triple) <= 0:
        raise CheckpointError(f"{key} {value!r} must be greater than 0")
    return triple


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class _Family:
    """What an image processor of transformers does if its file does not say.

    geometry: reads sizes. size, crop: defaults of `size` and `crop_size`; no crop if None.
    square: whether a bare number is a square. scale: the shortest edge is this many times what `size` says.
    flips: whether BGR is the default; None if the class does not flip. normalises: whether the class does at all.
    divides_twice: whether it divides by std once more if include_top says so.
    Source: the class attributes in transformers/models/*/image_processing_*.py.
    """

    size: object
    crop: int | None = None
    square: bool = True
    resample: int = 3
    mean: Triple = HALF
    std: Triple = HALF
    divides_twice: bool = False
    flips: bool | None = None
    normalises: bool = True
    scale: float = 1.0
    geometry: Callable[[Mapping[str, object], _Family], _Geometry] = _geometry


_FAMILIES = {
    "ConvNext": _Family({"shortest_edge": 384}, square=False, geometry=_convnext_geometry),
    "ViT": _Family({"height": 224, "width": 224}, resample=2),
    "Beit": _Family({"height": 224, "width": 224}),
    "Siglip": _Family({"height": 224, "width": 224}, square=False),
    "Pvt": _Family({"height": 224, "width": 224}, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "Segformer": _Family(
        {"height": 512, "width": 512},
        resample=2,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        geometry=_uncropped_geometry,
    ),
    "MobileNetV1": _Family({"shortest_edge": 256}, crop=224, square=False, resample=2),
    "MobileNetV2": _Family({"shortest_edge": 256}, crop=224, square=False, resample=2),
    "MobileViT": _Family({"shortest_edge": 224}, crop=256, square=False, flips=True, normalises=False),
    "EfficientNet": _Family({"height": 346, "width": 346}, divides_twice=True),
    "DeiT": _Family({"height": 256, "width": 256}, crop=224),
    "Bit": _Family({"shortest_edge": 224}, crop=224, square=False, mean=CLIP_MEAN, std=CLIP_STD),
    "CLIP": _Family({"shortest_edge": 224}, crop=224, square=False, mean=CLIP_MEAN, std=CLIP_STD),
    "Levit": _Family(
        {"shortest_edge": 224}, crop=224, square=False, mean=IMAGENET_MEAN, std=IMAGENET_STD, scale=256 / 224
    ),
    "PoolFormer": _Family(
        {"shortest_edge": 224},
        crop=224,
        square=False,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        geometry=_poolformer_geometry,
    ),
}
