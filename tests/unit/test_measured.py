"""The measured choice of engines: what is kept of it, when it is used again, and when it is not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from handlers import engines
from handlers.engines import Engine, EngineSpec, measured

CANDIDATES = ["torch_eager", "other"]


@pytest.fixture
def spec(digits_folder: Path, tmp_path: Path) -> EngineSpec:
    """Of an archive of its own, for batches of up to 3: buckets 1, 2 and 4."""
    folder = Path(shutil.copytree(digits_folder, tmp_path / "archive"))
    return EngineSpec(
        "image-classifier",
        folder,
        torch.device("cpu"),
        "fp32",
        image_size=32,
        batch_size=3,
        plan_cache=tmp_path / "c",
    )


class Other:
    """What the other engine runs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.engine.run(images)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes as they are timed. `other`, which is torch_eager as well, is the faster one from 2 images on."""
    sizes: list[int] = []
    load = engines.load

    def loaded(name: str, spec: EngineSpec) -> Engine:
        engine = load("torch_eager", spec)
        return Engine(Other(engine), {"library": "other"}) if name == "other" else engine

    def milliseconds(run: object, images: torch.Tensor) -> float:
        sizes.append(len(images))
        return 1.0 if isinstance(run, Other) == (len(images) > 1) else 2.0

    monkeypatch.setattr(measured, "load", loaded)
    monkeypatch.setattr(measured, "milliseconds", milliseconds)
    return sizes


def table_of(spec: EngineSpec) -> Path:
    (path,) = spec.plan_cache.glob(f"measured-*/{measured.FILE}")
    return path


def test_each_bucket_gets_the_fastest_and_later_loads_measure_nothing(spec: EngineSpec, timed: list[int]) -> None:
    name, engine = measured.load_fastest(spec, CANDIDATES)
    assert name == "other+torch_eager"
    assert timed == [1, 1, 2, 2, 4, 4]
    first: Any = engine.details["measured"]
    assert first["when"] == "here"
    assert first["servedBy"] == {"1": "torch_eager", "2": "other", "4": "other"}
    again_name, again = measured.load_fastest(spec, CANDIDATES)
    assert len(timed) == 6
    assert again_name == name
    assert again.details["measured"] == {**first, "when": "earlier"}
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(again.run(images), engine.run(images))


@pytest.mark.parametrize("changed", ["batch size", "weights", "candidates", "code"])
def test_other_conditions_are_measured_anew(
    spec: EngineSpec, timed: list[int], monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    measured.load_fastest(spec, CANDIDATES)
    before, candidates = len(timed), CANDIDATES
    if changed == "batch size":
        spec = dataclasses.replace(spec, batch_size=1)
    elif changed == "weights":
        from safetensors.torch import load_file, save_file

        path = spec.model_dir / "model.safetensors"
        save_file({name: value * 1.0001 for name, value in load_file(path).items()}, path, {"format": "pt"})
    elif changed == "candidates":
        candidates = ["torch_eager"]
    else:
        monkeypatch.setattr(measured, "_source_digest", lambda: "other code")
    assert measured.load_fastest(spec, candidates)[1].details["measured"]["when"] == "here"  # type: ignore[index]
    assert len(timed) > before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"milliseconds": {"1": {"torch_eager": 1}}}'])
def test_a_broken_table_is_measured_anew(
    spec: EngineSpec, timed: list[int], caplog: pytest.LogCaptureFixture, content: str
) -> None:
    measured.load_fastest(spec, CANDIDATES)
    path = table_of(spec)
    path.write_text(content, encoding="utf-8")
    assert measured.load_fastest(spec, CANDIDATES)[0] == "other+torch_eager"
    assert len(timed) == 12
    assert "is no table of times" in caplog.text
    assert json.loads(path.read_text(encoding="utf-8"))["servedBy"]["1"] == "torch_eager"


def test_an_engine_that_no_longer_loads_is_dropped(
    spec: EngineSpec, timed: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured.load_fastest(spec, CANDIDATES)
    load: Any = vars(measured)["load"]

    def torn(name: str, spec: EngineSpec) -> Engine:
        if name == "other":
            raise ValueError("model.plan is torn")
        engine: Engine = load(name, spec)
        return engine

    monkeypatch.setattr(measured, "load", torn)
    name, engine = measured.load_fastest(spec, CANDIDATES)
    assert name == "torch_eager"
    assert engine.details["measured"]["dropped"] == {"other": "ValueError: model.plan is torn"}  # type: ignore[index]
    assert "what was measured earlier cannot be loaded: model.plan is torn" in caplog.text


def test_where_nothing_can_be_kept_it_measures_and_says_so(
    spec: EngineSpec, timed: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    spec.plan_cache.write_text("a file where the folder should be", encoding="utf-8")
    for count in (1, 2):
        assert measured.load_fastest(spec, CANDIDATES)[0] == "other+torch_eager"
        assert len(timed) == 6 * count
    assert "what is measured here cannot be kept" in caplog.text
