from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.preprocess_configs import folder_preprocess, read_preprocess, read_timm_preprocess
from handlers.images.preprocess import Preprocess

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# preprocessor_config.json of microsoft/resnet-101.
MICROSOFT: dict[str, Any] = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "resample": 3,
    "size": 224,
}
VIT: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}
BIT: dict[str, Any] = {"image_processor_type": "BitImageProcessor"}
# pretrained_cfg of timm/resnet101.a1h_in1k.
TIMM: dict[str, Any] = {
    "input_size": [3, 224, 224],
    "test_input_size": [3, 288, 288],
    "test_crop_pct": 1.0,
    "interpolation": "bicubic",
    "crop_pct": 0.95,
    "crop_mode": "center",
    "mean": list(MEAN),
    "std": list(STD),
}


def test_reads_the_file_of_microsoft_resnet_101() -> None:
    assert read_preprocess(MICROSOFT) == Preprocess(224, 256, "shortest_edge", "bicubic", MEAN, STD)


@pytest.mark.parametrize(
    ("changes", "size", "resize", "mode"),
    [
        ({"size": {"shortest_edge": 224}}, 224, 256, "shortest_edge"),
        ({"size": {"shortest_edge": 224}, "crop_pct": None}, 224, 256, "shortest_edge"),
        ({"size": 288, "crop_pct": 0.95}, 288, 303, "shortest_edge"),
        ({"size": 383, "crop_pct": 1.0}, 383, 383, "shortest_edge"),
        ({"size": 384, "crop_pct": 0.875}, 384, 384, "square"),
        ({"size": None}, 384, 384, "square"),
        ({"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}, 224, 256, "shortest_edge"),
    ],
)
def test_convnext_crops_below_384_and_squashes_from_there(
    changes: dict[str, Any], size: int, resize: int, mode: str
) -> None:
    found = read_preprocess({**MICROSOFT, **changes})
    assert (found.size, found.resize, found.resize_mode) == (size, resize, mode)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, Preprocess(384, 384, "square", "bicubic", HALF, HALF)),
        (VIT, Preprocess(224, 224, "square", "bilinear", HALF, HALF)),
        ({**VIT, "size": 192}, Preprocess(192, 192, "square", "bilinear", HALF, HALF)),
        ({**VIT, "size": [192, 192]}, Preprocess(192, 192, "square", "bilinear", HALF, HALF)),
        (
            {"image_processor_type": "DeiTImageProcessor"},
            Preprocess(224, 256, "square", "bicubic", HALF, HALF),
        ),
        (
            {**VIT, "size": 256, "default_to_square": False, "do_center_crop": True, "crop_size": 224},
            Preprocess(224, 256, "shortest_edge", "bilinear", HALF, HALF),
        ),
        (
            {**BIT, "size": 224, "default_to_square": True},
            Preprocess(224, 224, "square", "bicubic", CLIP_MEAN, CLIP_STD),
        ),
        (
            {"image_processor_type": "SegformerImageProcessor", "size": {"height": 64, "width": 64}},
            Preprocess(64, 64, "square", "bilinear", MEAN, STD),
        ),
        (BIT, Preprocess(224, 224, "shortest_edge", "bicubic", CLIP_MEAN, CLIP_STD)),
        ({**BIT, "size": 256}, Preprocess(224, 256, "shortest_edge", "bicubic", CLIP_MEAN, CLIP_STD)),
        (
            {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 64}, "crop_size": 48},
            Preprocess(48, 64, "shortest_edge", "bicubic", CLIP_MEAN, CLIP_STD),
        ),
        (
            {"image_processor_type": "MobileNetV2ImageProcessor"},
            Preprocess(224, 256, "shortest_edge", "bilinear", HALF, HALF),
        ),
        ({"image_processor_type": "PvtImageProcessor"}, Preprocess(224, 224, "square", "bicubic", MEAN, STD)),
        (
            {"image_processor_type": "EfficientNetImageProcessor", "size": 224, "image_std": [0.5, 0.4, 0.3]},
            Preprocess(224, 224, "square", "bicubic", HALF, (0.5 * 0.5, 0.4 * 0.4, 0.3 * 0.3)),
        ),
        (
            {"image_processor_type": "EfficientNetImageProcessor", "size": 224, "include_top": False},
            Preprocess(224, 224, "square", "bicubic", HALF, HALF),
        ),
        (
            {**VIT, "size": {"height": 224, "width": 192}},
            Preprocess(224, 224, "square", "bilinear", HALF, HALF, width=192, resize_width=192),
        ),
        (
            {**BIT, "crop_size": {"height": 224, "width": 192}},
            Preprocess(224, 224, "shortest_edge", "bicubic", CLIP_MEAN, CLIP_STD, width=192),
        ),
        (
            {"image_processor_type": "LevitImageProcessor"},
            Preprocess(224, 256, "shortest_edge", "bicubic", MEAN, STD),
        ),
        (
            {"image_processor_type": "PoolFormerImageProcessor"},
            Preprocess(224, 248, "shortest_edge", "bicubic", MEAN, STD),
        ),
        (
            {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 288}, "image_mean": HALF},
            Preprocess(256, 288, "shortest_edge", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), channel_order="bgr"),
        ),
        (
            {**VIT, "do_center_crop": True, "crop_size": 200, "image_mean": 0.1, "image_std": 0.2},
            Preprocess(200, 224, "square", "bilinear", (0.1, 0.1, 0.1), (0.2, 0.2, 0.2)),
        ),
    ],
)
def test_other_processors_with_their_own_defaults(config: dict[str, Any], wanted: Preprocess) -> None:
    assert read_preprocess(config) == wanted


@pytest.mark.parametrize(
    ("number", "name"), [*enumerate(["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"])]
)
def test_resample_numbers_are_pillows(number: int, name: str) -> None:
    assert read_preprocess({**MICROSOFT, "resample": number}).interpolation == name


def test_without_normalisation_values_stay_within_0_and_1() -> None:
    found = read_preprocess({**MICROSOFT, "do_normalize": False})
    assert (found.mean, found.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({**VIT, "size": {"shortest_edge": 224, "longest_edge": 300}}, "size .*a height and a width"),
        ({"image_processor_type": "MobileViTImageProcessor"}, "crop of 256 x 256 is larger"),
        ({**VIT, "size": {"height": 224, "width": 0}}, "size: 0"),
        ({**VIT, "size": True}, "size: True"),
        ({**BIT, "crop_size": 225}, "crop of 225"),
        ({**BIT, "do_center_crop": False}, "do_center_crop"),
        ({**MICROSOFT, "size": {"height": 224, "width": 224}}, "size .*shortest_edge"),
        ({**MICROSOFT, "do_center_crop": True, "crop_size": 192}, "crop_size 192"),
        ({**MICROSOFT, "size": 0}, "size: 0"),
        ({**MICROSOFT, "crop_pct": 0}, "crop_pct 0"),
        ({**MICROSOFT, "crop_pct": 1.1}, "crop_pct 1.1"),
        ({**MICROSOFT, "resample": 9}, "resample 9"),
        ({**MICROSOFT, "resample": "bicubic"}, "resample 'bicubic'"),
        ({**MICROSOFT, "do_resize": False}, "do_resize False"),
        ({**MICROSOFT, "do_rescale": False}, "do_rescale False"),
        ({**MICROSOFT, "rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({**MICROSOFT, "do_pad": True}, "do_pad True"),
        ({**MICROSOFT, "do_flip_channel_order": True}, "do_flip_channel_order"),
        ({**MICROSOFT, "image_mean": [0.5, 0.5]}, "image_mean"),
        ({**MICROSOFT, "image_mean": [0.5, "a", 0.5]}, "image_mean"),
        ({**MICROSOFT, "image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ({**MICROSOFT, "image_std": float("nan")}, "image_std"),
        ({"image_processor_type": "PerceiverImageProcessor"}, "image_processor_type 'Perceiver"),
        ({"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True}, "rescale_offset True"),
    ],
)
def test_refuses_by_name_what_cannot_be_expressed(config: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read_preprocess(config)


def test_reads_timms_plain_settings_not_its_test_ones() -> None:
    assert read_timm_preprocess(TIMM) == Preprocess(224, 235, "shortest_edge", "bicubic", MEAN, STD, "even")


def test_timms_defaults() -> None:
    assert read_timm_preprocess({}) == Preprocess(224, 256, "shortest_edge", "bicubic", MEAN, STD, "even")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"input_size": [3, 224, 192]}, "input_size"),
        ({"input_size": [1, 224, 224]}, "input_size"),
        ({"input_size": 224}, "input_size"),
        ({"crop_mode": "squash"}, "crop_mode 'squash'"),
        ({"crop_mode": "border"}, "crop_mode 'border'"),
        ({"interpolation": "random"}, "interpolation 'random'"),
        ({"crop_pct": 1.2}, "crop_pct 1.2"),
        ({"crop_pct": "all"}, "crop_pct 'all'"),
        ({"mean": [0.5]}, "mean"),
        ({"std": [1.0, 1.0, -1.0]}, "std"),
    ],
)
def test_refuses_by_name_what_cannot_be_expressed_of_timms(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read_timm_preprocess({**TIMM, **changes})


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def test_processor_config_is_read_as_transformers_saves_it(tmp_path: Path) -> None:
    """CLIP's processor of today: no preprocessor_config.json, its content inside processor_config.json."""
    CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=48).save_pretrained(tmp_path)
    own = tmp_path / "preprocessor_config.json"
    content = json.loads(own.read_text(encoding="utf-8"))
    wanted = Preprocess(48, 64, "shortest_edge", "bicubic", CLIP_MEAN, CLIP_STD)
    assert folder_preprocess(tmp_path) == wanted
    write(own, VIT)
    write(tmp_path / "processor_config.json", {"image_processor": content, "processor_class": "CLIPProcessor"})
    assert folder_preprocess(tmp_path) == wanted  # it comes before the other file
    own.unlink()
    assert folder_preprocess(tmp_path) == wanted


def test_a_processor_config_without_an_image_processor_says_nothing(tmp_path: Path) -> None:
    assert folder_preprocess(tmp_path) is None
    write(tmp_path / "processor_config.json", {"processor_class": "CLIPProcessor"})
    assert folder_preprocess(tmp_path) is None
    write(tmp_path / "preprocessor_config.json", VIT)
    assert folder_preprocess(tmp_path) == read_preprocess(VIT)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("processor_config.json", {"image_processor": 3}, "image_processor in processor_config.json is a int"),
        ("processor_config.json", {"image_processor": {**VIT, "size": "large"}}, "size: 'large'"),
        ("processor_config.json", {"image_processor": {**VIT, "auto_map": {"a": "b.C"}}}, r"in processor.*b\.C"),
        ("processor_config.json", [], "processor_config.json holds a list"),
        ("preprocessor_config.json", {**VIT, "auto_map": {"a": "b.C"}}, r"preprocessor_config.json .*b\.C"),
    ],
)
def test_refuses_processor_files(tmp_path: Path, name: str, content: object, named: str) -> None:
    write(tmp_path / name, content)
    with pytest.raises(CheckpointError, match=named):
        folder_preprocess(tmp_path)
