"""The benchmark of engines, on a tiny network and a CPU: rows, files, counts, and what it says of what cannot run."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_model
import numpy as np
import pytest
import torch
from benchmarks import conditions, engine_loading, layers, report, resnets, results, shared_command, sweep, timing
from benchmarks.conditions import slug
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig

from handlers.engines import EngineSpec

NAMES = (
    "model engine precision batch length mix ms_p50 ms_p90 items_per_s tflops gpu torch tensorrt commit "
    "share_of_matmul share_of_memory_roofline peak_mb relative_error"
)
KEYS = NAMES.split()
RESNET101 = {"layer_type": "bottleneck", "depths": [3, 4, 23, 3], "num_labels": 1000}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny_resnet")
    settings = {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 1], "num_labels": 5}
    ResNetForImageClassification(ResNetConfig.from_dict(settings)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def out(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory, bench: Callable[..., None]) -> Path:
    """What one run of two engines that run, and three that cannot, has written: OUT.json and OUT.csv."""
    found = tmp_path_factory.mktemp("out") / "tiny-1.5"
    engines = "eager-fp32,eager-bf16,cudnn-fp16,torch2trt-fp16,tensorrt-static-fp16"
    options = ["--device", "cpu", "--image-size", "32", "--batches", "20,1", "--seconds-per-point", "0"]
    files = ["--model-dir", str(tiny_folder), "--out", str(found), "--commit", "abc"]
    bench("image-classifier", "--engines", engines, *options, *files)
    return found


@pytest.fixture
def content(out: Path, read_bench: Callable[[Path], Any]) -> Any:
    return read_bench(out)


def test_a_row_for_every_engine_and_batch(content: Any) -> None:
    rows = content["rows"]
    assert [(row["engine"], row["precision"], row["batch"]) for row in rows] == [
        ("eager", "fp32", 1),
        ("eager", "fp32", 20),
        ("eager", "bf16", 1),
        ("eager", "bf16", 20),
    ]
    for row in rows:
        assert sorted(row) == sorted(KEYS) == sorted(results.COLUMNS)
        assert 0 < row["ms_p50"] <= row["ms_p90"]
        assert row["items_per_s"] == pytest.approx(row["batch"] / row["ms_p50"] * 1000, rel=1e-4)
        assert min(row["tflops"], row["share_of_matmul"], row["share_of_memory_roofline"]) > 0
        assert (row["gpu"], row["commit"], row["model"]) == ("cpu", "abc", "resnet8")
        assert (row["length"], row["mix"]) == (None, None)
        assert row["relative_error"] < (1e-4 if row["precision"] == "fp32" else 5e-2)


def test_the_conditions_are_kept(content: Any) -> None:
    wanted = "date gpu driver torch cuda cudnn tensorrt python commit ceilings image_size cpu onnxruntime"
    assert content["conditions"].keys() == set(wanted.split())
    assert content["conditions"]["ceilings"]["matmul_tflops"].keys() == {"fp16", "fp32", "bf16"}


def test_what_cannot_run_is_reported_with_its_reason(content: Any) -> None:
    reasons = {item["engine"]: item["reason"] for item in content["skipped"]}
    assert reasons.keys() == {"cudnn-fp16", "torch2trt-fp16", "tensorrt-static-fp16"}
    assert "torch2trt needs an NVIDIA GPU" in reasons["torch2trt-fp16"]
    assert "it needs an NVIDIA GPU" in reasons["cudnn-fp16"]
    assert "it needs an NVIDIA GPU" in reasons["tensorrt-static-fp16"]
    assert "not run: cudnn-fp16: engine cudnn cannot run here" in report.table(content)


def test_csv_and_table_hold_every_row(out: Path, content: Any) -> None:
    with results.with_suffix(out, "csv").open(encoding="utf-8") as stream:
        held = list(csv.DictReader(stream))
    assert [float(row["ms_p50"]) for row in held] == [row["ms_p50"] for row in content["rows"]]
    head, _, first, second, *_ = report.table(content).splitlines()
    assert head == "| batch | eager-fp32 | eager-bf16 |"
    assert (first.split(" | ")[0], second.split(" | ")[0]) == ("| 1", "| 20")


def test_the_picture_is_drawn_from_the_json_alone(content: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    path = tmp_path / "again-1.5.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert bench_model.main(["picture", str(path)]) == 0
    assert (tmp_path / "again-1.5.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "again-1.5.csv").is_file()


def test_without_matplotlib_it_says_so_and_goes_on(
    content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(report, "import_module", missing)
    report.write_rest(tmp_path / "x", content)
    said = capsys.readouterr().out
    assert "no picture: No module named 'matplotlib'" in said
    assert f"scripts/bench_model picture {tmp_path / 'x.json'}" in said
    assert "| batch |" in said


def test_no_gpu_is_an_error_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_model.main(["image-classifier"]) == 1
    assert "--device cpu" in capsys.readouterr().err


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    ViTConfig().save_pretrained(tmp_path)
    spec = EngineSpec("image-classifier", tmp_path, torch.device("cpu"), "fp32")
    with pytest.raises(ValueError, match="holds a vit; wanted: a ResNet"):
        resnets.workload(spec)


@pytest.mark.parametrize("name", ["eager", "fp16", "-fp16", "eager-int4", ""])
def test_an_engine_without_a_precision_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="ENGINE-PRECISION"):
        engine_loading.split_name(name)


def test_resnet101_costs_what_is_known_of_it() -> None:
    counted = layers.resnet_layers(ResNetConfig.from_dict(RESNET101), 224)
    assert layers.total_flops(counted) == pytest.approx(15.6e9, rel=0.02)
    assert sum(layer.weights for layer in counted) == pytest.approx(44.5e6, rel=0.01)
    assert len(counted) == 1 + 3 * 33 + 4 + 1  # stem, bodies, shortcuts, classifier


def test_a_layer_reads_and_writes_once() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 1))
    first, second = layers.count(network, torch.zeros(1, 3, 8, 8), adding=[network[1]])
    assert first == layers.Layer(flops=2 * 27 * 4 * 64, activations=(3 + 4) * 64, weights=27 * 4)
    assert second == layers.Layer(flops=2 * 4 * 4 * 64, activations=(4 + 4 + 4) * 64, weights=16)


def test_the_roofline_is_the_longer_of_computing_and_moving() -> None:
    computing = layers.Layer(flops=10**12, activations=1, weights=1)
    moving = layers.Layer(flops=1, activations=10**12, weights=0)
    both = [layer.times(2) for layer in (computing, moving)]
    assert layers.roofline_ms(both, 2, tflops=100, tb_per_s=4) == pytest.approx(20 + 1000)
    assert both[0].weights == 1


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_quantiles_are_numpys(share: float) -> None:
    values = [5.0, 1.0, 4.0, 2.5]
    assert timing.quantile(values, share) == pytest.approx(float(np.quantile(values, share)))
    assert timing.quantile([3.0], share) == 3.0


def test_a_point_is_called_often_enough() -> None:
    assert len(timing.times_ms(lambda: None, torch.device("cpu"), 0)) == timing.MIN_CALLS


def test_outputs_are_checked_before_they_are_timed() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 1.0]], dtype=np.float32)
    assert sweep.checked_error(torch.tensor([[3.0, 4.0], [0.0, 1.5]]), reference) == 0.5
    with pytest.raises(ValueError, match="not finite"):
        sweep.checked_error(torch.tensor([[3.0, 4.0], [0.0, float("inf")]]), reference)
    with pytest.raises(ValueError, match="shape"):
        sweep.checked_error(torch.zeros(1, 2), reference)


def test_a_gpu_names_its_files() -> None:
    assert slug("NVIDIA H200") == "h200"
    assert slug("NVIDIA A100-SXM4-80GB") == "a100-sxm4-80gb"


@pytest.mark.parametrize(("command", "name"), [("image-classifier", "cuddn-fp16"), ("text-encoder", "tensort-fp16")])
def test_a_mistyped_engine_is_noticed_at_once(
    command: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "Sweep", lambda *_: pytest.fail("the benchmark began"))
    assert bench_model.main([command, "--device", "cpu", "--engines", f"{name},eager-fp32"]) == 1
    said = capsys.readouterr()
    assert f"error: no engine '{name}'; known: " in said.err
    assert "torch_eager" in said.err
    assert not said.out


def test_a_run_of_less_leaves_the_published_results_alone() -> None:
    whole: dict[str, list[Any]] = {"engines": ["a-fp16", "b-fp16"], "batches": [1, 64]}
    asked: dict[str, Any] = {**whole, "seconds_per_point": 1.0, "image_size": 224, "model_dir": None}
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "net-gpu"),
        ({"engines": ["b-fp16", "a-fp16", "c-fp16"]}, "net-gpu"),
        ({"engines": ["a-fp16"]}, "net-gpu-part"),
        ({"batches": [64]}, "net-gpu-part"),
        ({"seconds_per_point": 0.1}, "net-gpu-part"),
        ({"image_size": 96}, "net-gpu-part"),
        ({"model_dir": Path("mine")}, "net-gpu-part"),
    ]
    for changes, name in cases:
        chosen = argparse.Namespace(**{**asked, **changes})
        found = shared_command.out_of(chosen, "net-gpu", whole, {"image_size": 224})
        assert found == conditions.ROOT / "docs" / "benchmarks" / name
