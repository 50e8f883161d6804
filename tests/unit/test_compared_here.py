"""A result that another machine has kept does not spare the engine its comparison with fp32."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from handlers import engines
from handlers.engines import EngineSpec, LoadedEngine
from handlers.selection import choosing, compared_here, cpu_timing, gpu_timing, references

CPU = torch.device("cpu")
Load = Callable[[], tuple[str, LoadedEngine]]


def image_spec(folder: Path, tmp_path: Path) -> EngineSpec:
    copy = Path(shutil.copytree(folder, tmp_path / "archive"))
    return EngineSpec("image-classifier", copy, CPU, "fp32", image_size=32, batch_size=3, plan_cache=tmp_path / "c")


@pytest.fixture
def loads(
    digits_folder: Path, minilm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[str, Load]]:
    """By way of choosing: the engine that serves first, and a load."""
    images = image_spec(digits_folder, tmp_path)
    texts = EngineSpec("text-encoder", minilm_folder, CPU, "fp32", task="embeddings", plan_cache=tmp_path / "t")
    monkeypatch.setattr(gpu_timing, "milliseconds", lambda *_: 1.0)
    monkeypatch.setattr(cpu_timing, "least_ms", lambda run: run() is None or 1.0)

    def by_gpu_times() -> tuple[str, LoadedEngine]:
        return gpu_timing.load_fastest(images, ["onnxruntime", "torch_eager"])

    def by_cpu_times() -> tuple[str, LoadedEngine]:
        name, _, engine = choosing.load_best("auto", [images])
        return name, engine

    def by_comparison() -> tuple[str, LoadedEngine]:
        return choosing.load_chosen("auto", texts)

    return {
        "by_gpu_times": ("onnxruntime", by_gpu_times),
        "by_cpu_times": ("onnxruntime", by_cpu_times),
        "by_comparison": (engines.names("text-encoder")[0], by_comparison),
    }


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each comparison of an engine."""
    found: list[int] = []
    for kind in (references.Images, references.Texts):
        compare = kind.compare

        def counted(self: Any, engine: Any, spec: Any, compare: Any = compare) -> Any:
            found.append(1)
            return compare(self, engine, spec)

        monkeypatch.setattr(kind, "compare", counted)
    return found


def when(engine: LoadedEngine) -> object:
    details: Any = engine.details
    return (details.get("measured") or details["checked"])["when"]


def spoil(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """This machine computes wrongly with one engine."""
    load = engines.load

    def loaded(name: str, spec: EngineSpec) -> LoadedEngine:
        engine = load(name, spec)
        return dataclasses.replace(engine, run=lambda batch: engine.run(batch) * 0 + 1) if name == wrong else engine

    monkeypatch.setattr(engines, "load", loaded)


WAYS = ["by_gpu_times", "by_cpu_times", "by_comparison"]


@pytest.mark.parametrize("way", WAYS)
def test_a_result_of_this_machine_is_enough(
    loads: dict[str, tuple[str, Load]], compared: list[int], way: str
) -> None:
    first, load = loads[way]
    assert (load()[0].split("+")[0], when(load()[1])) == (first, "earlier")
    before = len(compared)
    load()
    assert len(compared) == before


@pytest.mark.parametrize("way", WAYS)
def test_one_of_another_machine_is_compared_here(
    loads: dict[str, tuple[str, Load]], compared: list[int], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    first, load = loads[way]
    load()
    monkeypatch.setattr(compared_here, "here", lambda _: "another machine")
    before = len(compared)
    name, engine = load()
    assert (name, when(engine)) == (first, "earlier")
    assert len(compared) > before


@pytest.mark.parametrize("way", WAYS)
def test_an_engine_that_is_wrong_here_alone_does_not_serve(
    loads: dict[str, tuple[str, Load]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    first, load = loads[way]
    assert load()[0] == first
    spoil(monkeypatch, first)
    monkeypatch.setattr(compared_here, "here", lambda _: "another machine")
    name, engine = load()
    assert (name, when(engine)) != (first, "earlier")
    assert name != first
    assert f"engine {first} gives other outputs here" in caplog.text


def test_machines_and_gpus_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {compared_here.here(CPU), compared_here.here(torch.device("meta"))}
    monkeypatch.setattr(compared_here, "_machine", lambda: "another")
    ids.add(compared_here.here(CPU))
    assert len(ids) == 3


def test_without_a_boot_id_the_name_of_the_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared_here, "BOOT_ID", Path("/absent"))
    compared_here._machine.cache_clear()
    assert compared_here._machine()
    compared_here._machine.cache_clear()
