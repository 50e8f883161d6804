"""The engine alone, on the inputs of scripts/bench_serving's load: what is timed, and what comes of failures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import bench_serving
import pytest
from serving_bench import command, engine_alone, engine_process, loads, report
from serving_bench import options as bench_options
from serving_bench.archives import Archive
from serving_bench.engine_speed import EngineSpeed
from serving_bench.generator import Load
from serving_bench.layouts import Layout, count_visible
from serving_bench.measure import Bench
from serving_bench.resource_usage import GpuMonitor
from serving_bench.stream_generator import StreamGenerator

from handlers.hosts.contents import CONFIG
from tests.made_archives import model_files, write_mar

DIGITS = Path(bench_serving.__file__).parents[2] / "archive" / "digits"
LOAD = loads.images(DIGITS / "samples", None)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """The demo's digits as an archive, unpacked from what packaging would put in."""
    import yaml
    from transformers import ResNetConfig

    folder = tmp_path_factory.mktemp("digits")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((DIGITS / name).read_bytes())
    assert ResNetConfig.from_pretrained(folder).num_labels == 10
    (folder / "labels.json").write_text(json.dumps([str(digit) for digit in range(10)]))
    settings = {
        "batchSize": 8,
        "maxBatchDelay": 1,
        "handler": {
            "preprocess": {"size": 32, "resize": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
            "engine": "torch_eager",
            "precision": "fp32",
            "device": "cpu",
        },
    }
    mar = tmp_path_factory.mktemp("mar") / "digits.mar"
    files = model_files(folder, "image-classifier", settings)
    assert yaml.safe_load(files[CONFIG]) == settings
    return Archive("digits", write_mar(mar, files))


def environment() -> dict[str, str]:
    return engine_alone._environment(Layout())


def test_the_engine_of_an_archive_is_timed_in_a_process_of_its_own(
    digits: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_alone, "SECONDS", 0.2)
    found = engine_alone.measure(digits, LOAD, environment())
    assert "reason" not in found, found
    assert found["items_per_s"] > 0
    assert (found["batch"], found["engine"], found["precision"]) == (64, "torch_eager", "fp32")
    assert found["device"].startswith("cpu")
    assert "in batches of 64" in engine_alone.line("digits", found)


def test_the_handlers_own_batches_are_timed(digits: Archive) -> None:
    from handlers.hosts.loading import load_archive
    from handlers.hosts.messages import HttpRequest

    sent = [HttpRequest(headers=LOAD.headers, body=LOAD.bodies[0])] * 5
    with load_archive(digits.file) as model:
        engine = model._handler.model.engine  # type: ignore[union-attr]
        run, batches = engine_process.recorded(model, sent)
        assert sum(len(batch) for batch in batches) == 5
        assert run(batches[0]).shape[1] == 10
        assert model._handler.model.engine is engine  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="answered 415 to 1 of 6"):
            engine_process.recorded(model, [*sent, HttpRequest(headers=LOAD.headers, body=b"junk")])


def test_the_rate_is_that_of_all_items() -> None:
    calls: list[int] = []

    def run(batch: int) -> None:
        calls.append(batch)
        time.sleep(0.01)

    rate = engine_process.items_per_s(run, [1, 2], 40, 0.2)
    assert 1000 < rate <= 2000  # 40 items in 20 ms
    calls.clear()
    assert 0 < engine_process.items_per_s(run, [1, 2], 40, 0.001) <= 2000
    assert calls == [1, 2] * 2  # a slow engine is not run for minutes


def test_batches_are_large_and_as_large_as_those_that_are_served(digits: Archive) -> None:
    def load_of(items: int) -> Load:
        return Load("x", [b"x"], {}, "texts", items)

    assert engine_alone.batch_sizes(digits, load_of(1)) == [64]
    assert engine_alone.batch_sizes(digits, load_of(16)) == [64, 128]
    assert engine_alone.batch_sizes(digits, load_of(32)) == [64, 256]
    assert engine_alone.batch_sizes(digits, load_of(500)) == [64, 256]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"load": Load("junk", [b"junk"], LOAD.headers, "images")}, "answered 415"),
        ({"module": "no.such.module"}, "No module named"),
        ({"timeout_s": 0.01}, "TimeoutExpired"),
        ({"python": "/nowhere/python"}, "No such file"),
        ({"mar": b"PK no archive"}, "no zip file"),
    ],
)
def test_what_fails_is_a_reason(
    change: dict[str, Any], said: str, digits: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "module" in change:
        monkeypatch.setattr(engine_alone, "MODULE", change["module"])
    if "python" in change:
        monkeypatch.setattr(engine_alone.sys, "executable", change["python"])  # type: ignore[attr-defined]
    archive = digits
    if "mar" in change:
        archive = Archive("broken", tmp_path / "broken.mar")
        archive.file.write_bytes(change["mar"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_alone, "archive_objection", lambda _: None)
        timeout_s = change.get("timeout_s", 60)
        if "mar" in change:
            patch.setattr(engine_alone, "batch_sizes", lambda *_: [64])
        found = engine_alone.measure(archive, change.get("load", LOAD), environment(), timeout_s)
    assert set(found) == {"reason"}
    assert said in found["reason"] or "mar" in change


def test_shares_are_written_into_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    saved: list[int] = []
    bench = Bench(StreamGenerator(1), StreamGenerator(1), GpuMonitor(), 1, 1, shown.append, lambda b: saved.append(1))
    bench.begin(2)
    rows = [
        {"archive": "a", "load": "one", "kind": "archive", "workers": 4, "items_per_s": 500.0},
        {"archive": "a", "load": "one", "kind": "archive", "workers": 1, "items_per_s": 500.0},
        {"archive": "b", "load": "one", "kind": "archive", "workers": 1, "items_per_s": 500.0},
        {"load": "one", "kind": "no-op", "workers": 1, "items_per_s": 500.0},
    ]
    bench.rows += rows
    results = {
        "a": {
            "items_per_s": 1000.0,
            "batch": 64,
            "engine": "fused",
            "precision": "fp16",
            "device": "cuda:0 (H)",
            "unit": "texts",
        },
        "b": {"reason": "it has not loaded"},
    }
    monkeypatch.setattr(engine_alone, "measure", lambda archive, load, environment: results[archive.name])
    pairs = [(Archive(name, Path("x")), Load("one", [b""], {})) for name in results]
    found: dict[str, Any] = {}
    engine_alone.measure_all(bench, pairs, Layout(), 2, found)
    assert [row.get("share_of_engine") for row in rows] == [0.25, 0.5, None, None]
    assert found == results
    assert len(saved) == 2
    assert (
        shown[1]
        == "point 1 of 2, about 0 s left: engine of a alone (fused, fp16, cuda:0 (H)): 1,000 texts/s in batches of 64"
    )
    assert shown[-1] == "engine of b alone: not measured, it has not loaded"
    assert bench.progress.total == 1
    notes = report.notes({"engine_alone": found, "rows": []})
    assert notes[1] == "engine of b alone: not measured, it has not loaded"


@pytest.mark.parametrize(
    ("row", "gpus", "share"),
    [
        ({"gpus": None, "workers": 4}, 0, 0.5),
        ({"gpus": None, "workers": 4}, 2, 0.25),
        ({"gpus": None, "workers": 1}, 2, 0.5),
        ({"gpus": 4, "workers": 8}, 8, 0.125),
        ({"gpus": None, "workers": None}, 2, 0.25),
    ],
)
def test_the_share_is_of_the_gpus_in_use(row: dict[str, Any], gpus: int, share: float) -> None:
    assert EngineSpeed(1000, gpus).share({"kind": "archive", "items_per_s": 500.0, **row}) == share


def test_visible_gpus_are_counted_however_they_are_named() -> None:
    assert count_visible({}, 4) == 4
    for words, count in (("0,2", 2), ("GPU-1f,GPU-2e", 2), ("", 0), ("-1", 0)):
        assert count_visible({"CUDA_VISIBLE_DEVICES": words}, 4) == count


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], None),
        (["--engine", "measure", "--quick", "--no-noop"], None),
        (["--engine", "none"], "--engine none"),
        (["--quick"], "--quick measures no speeds; --engine measure"),
        (["--no-noop"], "--no-noop"),
        (["--engine-items-per-second", "5"], "--engine-items-per-second"),
        (["--address", "http://h/x"], "--address"),
    ],
)
def test_when_the_engine_is_measured(arguments: list[str], said: str | None) -> None:
    reason = command.why_no_engine(bench_options.parser().parse_args(arguments))
    assert reason is None if said is None else said in str(reason)
    assert command.plan_of(bench_options.parser().parse_args(arguments)).no_engine == reason
