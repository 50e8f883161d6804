"""docs/settings.md says what handlers/settings.py has: every key, its default, every value that it may have."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import settings_page

from archive import resolve
from archive.presets import of_command
from handlers import settings
from handlers.settings import ImageSettings, TextSettings
from handlers.tasks.shared.pooling import POOLINGS, Pooling


def test_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert settings_page.main(["--check"]) == 0, capsys.readouterr().err


def test_stale_page_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_page, "page", lambda: "another page")
    assert settings_page.main(["--check"]) == 1


def test_what_packaging_writes_is_what_it_says() -> None:
    usual, *presets = (of_command(name) for name in ("text-encoder", "resnet101", "bert-large"))
    assert {preset.max_batch_delay_ms for preset in presets} == {usual.max_batch_delay_ms}
    (most,) = {preset.batch_size for preset in presets}
    text = settings_page.page()
    assert f"Packaging writes `{usual.batch_size}`, the presets `{most}`, or what `--batch-size` says" in text
    assert f"Packaging writes `{usual.max_batch_delay_ms}`, or what `--max-batch-delay-ms` says" in text
    assert f"Packaging writes `{resolve.RESPONSE_TIMEOUT_S}`. Seconds for one batch" in text
    assert f"Packaging writes `{resolve.STARTUP_TIMEOUT_S}`, or more if TensorRT" in text


@pytest.mark.parametrize(("kind", "within"), [(ImageSettings, ""), (TextSettings, ""), (Pooling, "pooling.")])
def test_every_key_has_a_heading(kind: type, within: str) -> None:
    lines = settings_page.page().splitlines()
    keys = [f"### `{within}{settings_page.camel(field.name)}`" for field in dataclasses.fields(kind)]
    assert [key for key in keys if key not in lines] == []


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (ImageSettings, "precision", settings.PRECISIONS),
        (ImageSettings, "device", settings.DEVICES),
        (ImageSettings, "decoder", settings.DECODERS),
        (ImageSettings, "on_mismatch", settings.ON_MISMATCH),
        (TextSettings, "task", settings.TEXT_TASKS),
        (Pooling, "modes", POOLINGS),
    ],
)
def test_every_value_is_named(kind: type, name: str, values: tuple[str, ...]) -> None:
    said = settings_page.descriptions(kind)[name]
    assert [value for value in values if f'"{value}"' not in said] == []


@dataclass
class Sample:
    """A class with other lines.

    Attributes:
        one, two: first words,
            a | and more.
        three: Last words.

    Raises:
        ValueError: four: not a field.
    """

    one: int = 1
    two: int = 2
    three: int = 3


@dataclass
class Silent(Sample):
    """Nothing is said here of four."""

    four: int = 4


def test_entries_are_read_over_several_lines() -> None:
    both = "First words, a | and more."
    assert settings_page.descriptions(Sample) == {"one": both, "two": both, "three": "Last words."}


def test_setting_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Silent's docstring says nothing of four"):
        settings_page.descriptions(Silent)


def test_options_are_those_of_the_packaging_script() -> None:
    options = settings_page.packaging_options("image-classifier")
    assert settings_page.option_of("plan_buckets", options) == "--plan-buckets"
    assert settings_page.option_of("cpu_threads", options) == ""


def test_quoted_values_become_code() -> None:
    assert settings_page.wrapped('Either "a-b", "" or "two words".') == ['Either `a-b`, `""` or "two words".']
