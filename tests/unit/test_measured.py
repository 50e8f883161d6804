"""The measured choice of engines: what is kept of it, when it is used again, and when it is not."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

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
    (path,) = spec.plan_cache.glob("measured-*.json")
    return path


def when(spec: EngineSpec, candidates: list[str] = CANDIDATES) -> object:
    """ "here" or "earlier": when what serves was measured."""
    found: Any = measured.load_fastest(spec, candidates)[1].details["measured"]
    return found["when"]


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


CHANGES: dict[str, dict[str, Any]] = {
    "batch size": {"batch_size": 1},
    "plan buckets": {"buckets": (1, 4)},
    "precision": {"precision": "bf16"},
    "image size": {"image_size": 64},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_another_spec_is_measured_anew(spec: EngineSpec, timed: list[int], changes: dict[str, Any]) -> None:
    measured.load_fastest(spec, CANDIDATES)
    assert when(dataclasses.replace(spec, **changes)) == "here"
    assert when(spec) == "earlier"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.onnx", "plan/model.json"])
def test_another_file_is_measured_anew(spec: EngineSpec, timed: list[int], name: str) -> None:
    (spec.model_dir / "plan").mkdir()
    (spec.model_dir / "plan" / "model.json").write_text("{}", encoding="utf-8")
    measured.load_fastest(spec, CANDIDATES)
    path = spec.model_dir / name
    if name == "model.safetensors":
        save_file({key: value * 1.0001 for key, value in load_file(path).items()}, path, {"format": "pt"})
    else:
        path.write_text((path.read_text(encoding="utf-8") if path.exists() else "") + "\n", encoding="utf-8")
    assert when(spec) == "here"


@pytest.mark.parametrize("name", ["gpu_name", "_version", "_source_digest"])
def test_another_machine_or_code_is_measured_anew(
    spec: EngineSpec, timed: list[int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    measured.load_fastest(spec, CANDIDATES)
    monkeypatch.setattr(measured, name, lambda *_: "another")
    assert when(spec) == "here"
    monkeypatch.undo()


def test_other_candidates_are_measured_anew(spec: EngineSpec, timed: list[int]) -> None:
    measured.load_fastest(spec, CANDIDATES)
    assert when(spec, ["torch_eager"]) == "here"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"milliseconds": {"1": {"torch_eager": 1}}}'])
def test_a_broken_table_is_measured_anew(
    spec: EngineSpec, timed: list[int], caplog: pytest.LogCaptureFixture, content: str
) -> None:
    measured.load_fastest(spec, CANDIDATES)
    path = table_of(spec)
    path.write_text(content, encoding="utf-8")
    assert measured.load_fastest(spec, CANDIDATES)[0] == "other+torch_eager"
    assert len(timed) == 12
    assert f"measuring again, for {path} does not serve" in caplog.text
    assert json.loads(path.read_text(encoding="utf-8"))["servedBy"]["1"] == "torch_eager"


class CompilationError(Exception):
    """As Triton's: no RuntimeError."""


@pytest.mark.parametrize("earlier", [False, True], ids=["at first", "later"])
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, CompilationError])
def test_an_engine_that_fails_to_load_once_is_back_the_next_time(
    spec: EngineSpec,
    timed: list[int],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Exception],
    earlier: bool,
) -> None:
    if earlier:
        measured.load_fastest(spec, CANDIDATES)
    load: Any = vars(measured)["load"]

    def failing(name: str, spec: EngineSpec) -> Engine:
        if name == "other":
            raise kind("no memory is left")
        engine: Engine = load(name, spec)
        return engine

    with monkeypatch.context() as patch:
        patch.setattr(measured, "load", failing)
        name, engine = measured.load_fastest(spec, CANDIDATES)
    assert name == "torch_eager"
    found: Any = engine.details["measured"]
    assert found["dropped"] == {"other": f"{kind.__name__}: no memory is left"}
    assert f"engine other dropped: {kind.__name__}: no memory is left" in caplog.text
    assert measured.load_fastest(spec, CANDIDATES)[0] == "other+torch_eager"


def test_two_at_once_measure_one_after_the_other(
    spec: EngineSpec, timed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two models, on one GPU."""
    busy, overlaps = threading.Lock(), []

    def milliseconds(run: object, images: torch.Tensor) -> float:
        if not busy.acquire(blocking=False):
            overlaps.append(len(images))
            return 1.0
        time.sleep(0.05)
        busy.release()
        return 1.0

    monkeypatch.setattr(measured, "milliseconds", milliseconds)
    specs = [spec, dataclasses.replace(spec, image_size=64)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(when, specs))
    assert found == ["here", "here"]
    assert overlaps == []


def test_of_two_workers_that_load_at_once_one_measures(spec: EngineSpec, timed: list[int]) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert sorted(map(str, pool.map(when, [spec, spec]))) == ["earlier", "here"]
    assert len(timed) == 6


@pytest.mark.parametrize("broken", ["mkdir", "flock", "fsync"])
def test_where_nothing_can_be_kept_it_measures_and_says_so(
    spec: EngineSpec, timed: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A home that cannot be written to; one that knows no locks; a full disk."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if broken == "mkdir":
        spec.plan_cache.write_text("a file where the folder should be", encoding="utf-8")
    elif broken == "flock":
        monkeypatch.setattr("fcntl.flock", fail)
        monkeypatch.setattr("os.fsync", fail)
    else:
        monkeypatch.setattr("os.fsync", fail)
    for count in (1, 2):
        assert measured.load_fastest(spec, CANDIDATES)[0] == "other+torch_eager"
        assert len(timed) == 6 * count
    assert "cannot be kept" in caplog.text
