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

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file

from handlers import engines
from handlers.engines import EngineSpec, LoadedEngine, graphs
from handlers.selection import gpu_timing, references, results_cache

CANDIDATES = ["torch_eager", "other"]


@pytest.fixture
def spec(digits_folder: Path, tmp_path: Path) -> EngineSpec:
    """Of an archive of its own, for batches of up to 3: sizes 1, 2 and 3."""
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

    def __init__(self, engine: LoadedEngine) -> None:
        self.engine = engine

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.engine.run(images)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes as they are timed. `other`, which is torch_eager as well, is the faster one from 2 images on."""
    sizes: list[int] = []
    load = engines.load

    def loaded(name: str, spec: EngineSpec) -> LoadedEngine:
        engine = load("torch_eager", spec)
        return LoadedEngine(Other(engine), {"library": "other"}) if name == "other" else engine

    def milliseconds(run: object, images: torch.Tensor) -> float:
        sizes.append(len(images))
        return 1.0 if isinstance(run, Other) == (len(images) > 1) else 2.0

    monkeypatch.setattr(engines, "load", loaded)
    monkeypatch.setattr(gpu_timing, "milliseconds", milliseconds)
    return sizes


def table_of(spec: EngineSpec) -> Path:
    (path,) = spec.plan_cache.glob("measured-*.json")
    return path


def when(spec: EngineSpec, candidates: list[str] = CANDIDATES) -> object:
    """ "here" or "earlier": when what serves was measured."""
    found: Any = gpu_timing.load_fastest(spec, candidates)[1].details["measured"]
    return found["when"]


def test_each_batch_size_gets_the_fastest_and_later_loads_measure_nothing(spec: EngineSpec, timed: list[int]) -> None:
    name, engine = gpu_timing.load_fastest(spec, CANDIDATES)
    assert name == "other+torch_eager"
    assert timed == [3, 3, 2, 2, 1, 1]
    first: Any = engine.details["measured"]
    assert first["when"] == "here"
    assert first["servedBy"] == {"1": "torch_eager", "2-3": "other"}
    again_name, again = gpu_timing.load_fastest(spec, CANDIDATES)
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
    gpu_timing.load_fastest(spec, CANDIDATES)
    assert when(dataclasses.replace(spec, **changes)) == "here"
    assert when(spec) == "earlier"


FILES = ["config.json", "model.safetensors", "model.onnx", "plan/model.json", "parity.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_another_file_is_measured_anew(spec: EngineSpec, timed: list[int], name: str) -> None:
    (spec.model_dir / "plan").mkdir()
    (spec.model_dir / "plan" / "model.json").write_text("{}", encoding="utf-8")
    gpu_timing.load_fastest(spec, CANDIDATES)
    path = spec.model_dir / name
    if name == "parity.safetensors":
        references.compute(spec).save(spec.model_dir)
    elif name == "model.safetensors":
        save_file({key: value * 1.0001 for key, value in load_file(path).items()}, path, {"format": "pt"})
    else:
        path.write_text((path.read_text(encoding="utf-8") if path.exists() else "") + "\n", encoding="utf-8")
    assert when(spec) == "here"


@pytest.mark.parametrize("name", ["device_name", "version", "source_digest"])
def test_another_machine_or_code_is_measured_anew(
    spec: EngineSpec, timed: list[int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    gpu_timing.load_fastest(spec, CANDIDATES)
    monkeypatch.setattr(results_cache, name, lambda *_: "another")
    assert when(spec) == "here"
    monkeypatch.undo()


def test_other_candidates_are_measured_anew(spec: EngineSpec, timed: list[int]) -> None:
    gpu_timing.load_fastest(spec, CANDIDATES)
    assert when(spec, ["torch_eager"]) == "here"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"milliseconds": {"1": {"torch_eager": 1}}}'])
def test_a_broken_table_is_measured_anew(
    spec: EngineSpec, timed: list[int], caplog: pytest.LogCaptureFixture, content: str
) -> None:
    gpu_timing.load_fastest(spec, CANDIDATES)
    path = table_of(spec)
    path.write_text(content, encoding="utf-8")
    assert gpu_timing.load_fastest(spec, CANDIDATES)[0] == "other+torch_eager"
    assert len(timed) == 12
    assert f"measuring again, because {path} cannot be used" in caplog.text
    assert json.loads(path.read_text(encoding="utf-8"))["servedBy"]["1"] == "torch_eager"


def table_with(times: dict[int, tuple[float, float]]) -> gpu_timing.Table:
    """times: by batch size, of the engines `pads` and `exact`."""
    return gpu_timing.Table({size: {"pads": pads, "exact": exact} for size, (pads, exact) in times.items()})


def test_times_are_of_the_least_and_the_largest_batch_of_each_bucket() -> None:
    assert graphs.sizes_up_to(1) == [1]
    assert graphs.sizes_up_to(40) == [1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 40]
    assert graphs.sizes_up_to(1000) == [*graphs.sizes_up_to(40)[:-1], 64, 65, 128, 129, 256]


def test_an_engine_that_pads_serves_where_its_padding_is_worth_it() -> None:
    """At 64 images it is the faster one; 33 cost it as much as 64, and the other engine half."""
    table = table_with({1: (1, 2), 32: (8, 9), 33: (16, 10), 64: (16, 18)})
    fastest = table.fastest
    assert [fastest[count - 1] for count in (1, 32, 33, 40, 56, 57, 64)] == [
        "pads", "pads", "exact", "exact", "exact", "pads", "pads",
    ]  # fmt: skip
    assert table.as_dict()["servedBy"] == {"1-32": "pads", "33-56": "exact", "57-64": "pads"}


def test_what_is_warmed_up_at_both_ends_of_a_bucket_is_all_that_serves_in_between() -> None:
    """A third engine may be the fastest in the middle alone: it would have its first run there while one waits."""
    table = gpu_timing.Table({5: {"a": 1.0, "b": 9.0, "c": 2.0}, 8: {"a": 9.0, "b": 1.0, "c": 2.0}})
    assert set(table.fastest) == {"a", "b"}


def test_batches_beyond_the_largest_that_was_timed_are_cut(spec: EngineSpec, timed: list[int]) -> None:
    sizes = []
    engine = LoadedEngine(lambda images: sizes.append(len(images)) or images.flatten(1), {})  # type: ignore[func-returns-value]
    table = gpu_timing.Table({1: {"one": 1.0}, 2: {"one": 1.0}})
    _, combined = gpu_timing.combine({"one": engine}, table, "here")
    images = torch.randn(5, 3, 2, 2)
    assert torch.equal(combined.run(images), images.flatten(1))
    assert sizes == [2, 2, 1]


def test_batches_that_memory_does_not_suffice_for_are_cut_and_nothing_is_kept(
    spec: EngineSpec, timed: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = engines.load

    def small(name: str, spec: EngineSpec) -> LoadedEngine:
        engine = load(name, spec)

        def run(images: torch.Tensor) -> torch.Tensor:
            if len(images) > 2:
                raise torch.OutOfMemoryError("no memory is left")
            return engine.run(images)

        return dataclasses.replace(engine, run=run)

    def milliseconds(run: Any, images: torch.Tensor) -> float:
        run(images)
        return 1.0

    monkeypatch.setattr(engines, "load", small)
    monkeypatch.setattr(gpu_timing, "milliseconds", milliseconds)
    _, engine = gpu_timing.load_fastest(spec, CANDIDATES)
    found: Any = engine.details["measured"]
    assert set(found["milliseconds"]) == {"1", "2"}
    assert engine.run(torch.randn(3, 3, 32, 32)).shape == (3, 10)
    assert "too little memory for batches of 3" in caplog.text
    assert list(spec.plan_cache.glob("measured-*.json")) == []


def test_outputs_that_are_not_finite_are_named_so_in_valid_json(
    spec: EngineSpec, timed: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = engines.load

    def broken(name: str, spec: EngineSpec) -> LoadedEngine:
        engine = load(name, spec)
        if name != "other":
            return engine
        return dataclasses.replace(engine, run=lambda images: engine.run(images) * torch.nan)

    monkeypatch.setattr(engines, "load", broken)
    for when_measured in ("here", "earlier"):
        name, engine = gpu_timing.load_fastest(spec, CANDIDATES)
        found: Any = json.loads(orjson.dumps(engine.details))["measured"]
        assert (name, found["when"]) == ("torch_eager", when_measured)
        assert found["relativeError"]["other"] == "not finite"
        assert found["dropped"] == {"other": "its outputs are not finite"}
    assert len(timed) == 3


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
        gpu_timing.load_fastest(spec, CANDIDATES)
    load = engines.load

    def failing(name: str, spec: EngineSpec) -> LoadedEngine:
        if name == "other":
            raise kind("no memory is left")
        return load(name, spec)

    with monkeypatch.context() as patch:
        patch.setattr(engines, "load", failing)
        name, engine = gpu_timing.load_fastest(spec, CANDIDATES)
    assert name == "torch_eager"
    found: Any = engine.details["measured"]
    assert found["dropped"] == {"other": f"{kind.__name__}: no memory is left"}
    assert f"engine other dropped: {kind.__name__}: no memory is left" in caplog.text
    assert gpu_timing.load_fastest(spec, CANDIDATES)[0] == "other+torch_eager"


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

    monkeypatch.setattr(gpu_timing, "milliseconds", milliseconds)
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
        assert gpu_timing.load_fastest(spec, CANDIDATES)[0] == "other+torch_eager"
        assert len(timed) == 6 * count
    assert "cannot be kept" in caplog.text
