"""The `handler:` section: written and read back unchanged, and refused with the key's name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from handlers import settings
from handlers.images.preprocess import Preprocess
from handlers.settings import ImageSettings, Settings, SettingsError, TextSettings
from handlers.tasks.shared.pooling import POOLINGS, Pooling

positive = st.integers(1, 10**9)
common = {
    "engine": st.text(max_size=9),
    "precision": st.sampled_from(settings.IMAGE_PRECISIONS),
    "device": st.sampled_from(settings.DEVICES),
    "cpu_threads": st.integers(0, 99),
    "max_inputs": positive,
}
triples = st.tuples(*[st.floats(0.1, 9)] * 3)
preprocesses = st.builds(
    Preprocess,
    size=st.integers(1, 300),
    resize=st.integers(300, 600),
    resize_mode=st.sampled_from(["shortest_edge", "square"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]),
    mean=triples,
    std=triples,
)
image_settings = st.builds(
    ImageSettings,
    preprocess=preprocesses,
    top_k=positive,
    max_pixels=positive,
    micro_batch=positive,
    decode_threads=st.integers(0, 64),
    **common,
)
poolings = st.builds(
    Pooling,
    modes=st.lists(st.sampled_from(POOLINGS), min_size=1, max_size=3).map(tuple),
    normalize=st.booleans(),
)
text_settings = st.builds(
    TextSettings,
    task=st.sampled_from(settings.TEXT_TASKS),
    max_tokens=st.integers(3, 600),
    truncate=st.booleans(),
    pooling=poolings,
    lower_case=st.booleans(),
    top_k=st.integers(0, 99),
    max_chars=positive,
    max_chars_together=positive,
    token_budget=st.just(0) | st.integers(600, 10**6),
    **{**common, "precision": st.sampled_from(settings.PRECISIONS)},
)


@given(st.one_of(image_settings, text_settings))
def test_read_undoes_write(original: Settings) -> None:
    assert settings.read(type(original), settings.write(original)) == original


@given(st.one_of(image_settings, text_settings))
def test_read_undoes_write_through_yaml(original: Settings) -> None:
    text = yaml.safe_dump(settings.write(original), sort_keys=False)
    assert settings.read(type(original), yaml.safe_load(text)) == original


@pytest.mark.parametrize("kind", [ImageSettings, TextSettings])
def test_defaults_are_valid_and_an_empty_section_means_them(kind: type[Settings]) -> None:
    assert settings.read(kind, {}) == kind()
    assert settings.read(kind, settings.write(kind())) == kind()


@pytest.mark.parametrize("kind", [ImageSettings, TextSettings])
def test_each_default_is_valid_by_itself(kind: type[Settings]) -> None:
    for key, value in settings.write(kind()).items():
        assert settings.read(kind, {key: value}) == kind(), key


def test_keys_are_camel_case() -> None:
    section = settings.write(TextSettings())
    assert {"cpuThreads", "maxInputs", "maxTokens", "lowerCase", "tokenBudget"} <= section.keys()
    assert not [key for key in section if "_" in key]
    with pytest.raises(SettingsError, match="max_tokens"):
        settings.read(TextSettings, {"max_tokens": 9})


WRONG_TYPES: dict[type, list[object]] = {
    int: [True, "5", 5.0, None, [5]],  # bool is an int to Python, not to a reader of YAML
    bool: [0, 1, "true", "yes", None],
    str: [5, True, None, ["auto"]],
}


def wrong_values() -> list[tuple[type[Settings], str, object]]:
    return [
        (kind, key, wrong)
        for kind in (ImageSettings, TextSettings)
        for key, value in settings.write(kind()).items()
        for wrong in WRONG_TYPES.get(type(value), [None, "mean", 5, [[]]])
    ]


@pytest.mark.parametrize(("kind", "key", "wrong"), wrong_values())
def test_a_wrong_type_is_refused_by_name(kind: type[Settings], key: str, wrong: object) -> None:
    with pytest.raises(SettingsError) as refused:
        settings.read(kind, {key: wrong})
    assert f"handler.{key} is " in str(refused.value).replace(
        "handler: ", "handler."
    )  # refused by type, or as a whole


@pytest.mark.parametrize(
    ("kind", "section", "named"),
    [
        (ImageSettings, {"precision": "fp8"}, "precision is 'fp8'"),
        (ImageSettings, {"precision": "FP16"}, "precision is 'FP16'"),
        (ImageSettings, {"device": "cuda:1"}, "device is 'cuda:1'"),
        (ImageSettings, {"cpuThreads": -1}, "cpuThreads is -1"),
        (ImageSettings, {"maxInputs": 0}, "maxInputs is 0"),
        (ImageSettings, {"topK": 0}, "topK is 0"),
        (ImageSettings, {"maxPixels": 0}, "maxPixels is 0"),
        (ImageSettings, {"microBatch": -3}, "microBatch is -3"),
        (ImageSettings, {"decodeThreads": -1}, "decodeThreads is -1"),
        (TextSettings, {"task": "translation"}, "task is 'translation'"),
        (TextSettings, {"maxTokens": 2}, "maxTokens is 2"),  # [CLS], [SEP] and no word between
        (TextSettings, {"topK": -1}, "topK is -1"),
        (TextSettings, {"maxChars": 0}, "maxChars is 0"),
        (TextSettings, {"maxCharsTogether": 0}, "maxCharsTogether is 0"),
        (TextSettings, {"tokenBudget": 511}, "tokenBudget is 511"),  # less than one longest text
        (TextSettings, {"maxTokens": 20_000, "tokenBudget": 16_384}, "tokenBudget is 16384"),  # the same
        (TextSettings, {"tokenBudget": -1}, "tokenBudget is -1"),
        (TextSettings, {"pooling": {"modes": ["average"]}}, "modes ['average']"),
        (TextSettings, {"pooling": {"modes": []}}, "modes []"),
        (TextSettings, {"pooling": {"modes": [1]}}, "handler.pooling.modes is [1]"),
        (TextSettings, {"pooling": {"modes": "mean"}}, "handler.pooling.modes is 'mean'"),
        (TextSettings, {"pooling": {"normalize": 1}}, "handler.pooling.normalize is 1"),
        (TextSettings, {"pooling": {"normalise": True}}, "handler.pooling: unknown normalise"),
        (ImageSettings, {"preprocess": {"size": 32}}, "resize"),  # neither has a default
        (ImageSettings, {"preprocess": {}}, "size"),
    ],
)
def test_a_wrong_value_is_refused_by_name(kind: type[Settings], section: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        settings.read(kind, section)
    assert named in str(refused.value)
    assert str(refused.value).startswith("model-config.yaml: handler")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 0),
        ("size", 33),  # the crop would be larger than the image it is cut from
        ("resize", 31),
        ("resizeMode", "longest_edge"),
        ("interpolation", "cubic"),
        ("interpolation", 2),
        ("mean", [0.5, 0.5]),
        ("mean", ["0.5", "0.5", "0.5"]),
        ("mean", [None, None, None]),
        ("mean", [True, 0.5, 0.5]),
        ("mean", [float("inf"), 0.5, 0.5]),
        ("std", [0.5, 0.5, 0]),
        ("std", [0.5, -0.5, 0.5]),
        ("std", [float("nan"), 0.5, 0.5]),  # no comparison is true of it
        ("std", 0.5),
        ("std", "0.5"),
    ],
)
def test_preprocess_is_refused_by_name(key: str, value: object) -> None:
    section = {"size": 32, "resize": 32, key: value}
    with pytest.raises(SettingsError) as refused:
        settings.read(ImageSettings, {"preprocess": section})
    assert "handler.preprocess" in str(refused.value)
    assert key.replace("M", "_m") in str(refused.value) or key in str(refused.value)


def test_whole_numbers_do_for_mean_and_std() -> None:
    """YAML writes 1.0 as 1 where a person does."""
    section = {"preprocess": {"size": 8, "resize": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}}
    assert settings.read(ImageSettings, section).preprocess.std == (1, 1, 1)


@pytest.mark.parametrize("section", [None, [], "engine: auto", 5, [{"engine": "auto"}]])
def test_what_is_no_mapping_is_refused(section: object) -> None:
    with pytest.raises(SettingsError, match="wanted: a mapping"):
        settings.read(ImageSettings, section)


@pytest.mark.parametrize("key", ["batchSize", "TOPK", "", 5, None])
def test_an_unknown_key_is_refused_with_the_known_ones(key: object) -> None:
    with pytest.raises(SettingsError) as refused:
        settings.read(ImageSettings, {key: 1})
    assert f"unknown {key}" in str(refused.value)
    for item in dataclasses.fields(ImageSettings):
        assert settings._camel(item.name) in str(refused.value)
