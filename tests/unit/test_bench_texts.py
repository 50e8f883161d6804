"""The benchmark of text encoders, on a tiny BERT and a CPU: points, peers, costs, kernels, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_model
import numpy as np
import onnxruntime
import pytest
import torch
from benchmarks import (
    engine_loading,
    kernel_times,
    layers,
    points,
    report,
    results,
    shared_command,
    text_peers,
    text_tensorrt,
    texts,
    timing,
)
from benchmarks.points import Point
from benchmarks.sweep import Ceilings
from torch.profiler import profile
from transformers import BertConfig, BertModel, ResNetConfig, RobertaConfig

from archive.parity import relative_errors
from archive.presets import Preset
from handlers import engines
from handlers.encoder.packing import TokenBatch
from handlers.engines import EngineSpec, LoadedEngine

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 50,
    "max_position_embeddings": 128,
    "initializer_range": 0.5,
}
BERT_LARGE = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
MIXED, UNIFORM = (7, 3, 5), (6, 6)


def save(folder: Path, **changes: Any) -> EngineSpec:
    torch.manual_seed(0)
    BertModel(BertConfig(**{**TINY, **changes}), add_pooling_layer=False).save_pretrained(folder)
    return EngineSpec("text-encoder", folder, CPU, "fp32", task="embeddings")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    return save(tmp_path_factory.mktemp("tiny_bert"))


@pytest.fixture(scope="module")
def out(spec: EngineSpec, tmp_path_factory: pytest.TempPathFactory, bench: Callable[..., None]) -> Path:
    """What one run of engines that run, and some that cannot, has written."""
    found = tmp_path_factory.mktemp("out") / "texts"
    engines = "hf-eager-fp32,hf-sdpa-bf16,eager-fp32,torch-fastpath-fp32,tensorrt-fp16,compile-fp32"
    options = ["--points", "2x12,1x9,short8", "--compile-points", "3x3", "--token-budget", "256"]
    options += ["--device", "cpu", "--seconds-per-point", "0", "--kernels", "torch-fastpath-fp32:short8"]
    files = ["--model-dir", str(spec.model_dir), "--out", str(found), "--commit", "abc"]
    bench("text-encoder", "--engines", engines, *options, *files)
    return found


@pytest.fixture
def content(out: Path, read_bench: Callable[[Path], Any]) -> Any:
    return read_bench(out)


def batch_of(lengths: tuple[int, ...]) -> TokenBatch:
    config = BertConfig(**TINY)
    return texts.token_batches(config, [lengths], CPU, seed=1)[0]


def test_a_row_for_every_engine_and_point(content: Any) -> None:
    rows = content["rows"]
    ran = [("hf-eager", "fp32"), ("hf-sdpa", "bf16"), ("eager", "fp32"), ("torch-fastpath", "fp32")]
    at = [(2, 12, None), (1, 9, None), (8, None, "short8")]
    found = [((row["engine"], row["precision"]), (row["batch"], row["length"], row["mix"])) for row in rows]
    assert found == [(engine, point) for engine in ran for point in at]
    for row in rows:
        assert sorted(row) == sorted(results.COLUMNS)
        assert row["model"] == "bert-2x16"
        assert row["items_per_s"] == pytest.approx(row["batch"] / row["ms_p50"] * 1000, rel=1e-4)
        assert row["relative_error"] < (1e-5 if row["precision"] == "fp32" else 5e-2)


def test_tflops_count_real_tokens_alone(content: Any) -> None:
    lengths = points.lengths_of(points.parse("short8"))
    each = [2 * (2 * s * (4 * 16**2 + 2 * 16 * 40) + 4 * s * s * 16) for s in lengths]
    for row in content["rows"]:
        if row["mix"]:
            assert row["tflops"] == pytest.approx(sum(each) / (row["ms_p50"] * 1e-3) / 1e12, rel=1e-4)


def test_mixes_and_the_token_budget_are_noted(content: Any) -> None:
    assert content["conditions"]["token_budget"] == 256
    assert content["conditions"]["mixes"] == {"short8": {"sequences": 8, "tokens": 552, "longest": 128}}


def test_what_cannot_run_is_reported_with_its_reason(content: Any) -> None:
    reasons = {item["engine"]: item["reason"] for item in content["skipped"]}
    assert reasons.keys() == {"tensorrt-fp16", "compile-fp32"}
    assert "needs an NVIDIA GPU and fp16" in reasons["tensorrt-fp16"]
    assert "--compile-points" in reasons["compile-fp32"]


def test_the_table_has_mixes_last(content: Any) -> None:
    head, _, *lines = report.table(content).splitlines()
    assert head.startswith("| batch x tokens | hf-eager-fp32 |")
    assert [line.split(" | ")[0] for line in lines[:3]] == ["| 1 x 9", "| 2 x 12", "| short8"]


def test_the_picture_is_drawn_from_the_json_alone(content: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    path = tmp_path / "again.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert bench_model.main(["picture", str(path)]) == 0
    assert (tmp_path / "again.png").read_bytes().startswith(b"\x89PNG")


def test_kernels_stand_beside_their_floors(content: Any) -> None:
    (found,) = content["kernels"]
    assert (found["engine"], found["precision"], found["mix"]) == ("torch-fastpath", "fp32", "short8")
    assert sum(kernel["share"] for kernel in found["kernels"]) == pytest.approx(1, abs=1e-3)
    times = [kernel["us"] for kernel in found["kernels"]]
    assert times == sorted(times, reverse=True)
    assert found["kernels"][0]["us_per_layer"] == pytest.approx(times[0] / 2, rel=1e-4)
    parts = [floor["part"] for floor in found["floors"]]
    wanted = "qkv, attention, attention output, feed-forward in, feed-forward out, norms, sum without norms"
    assert parts == wanted.split(", ")
    *products, whole = found["products"]
    assert [row["part"] for row in products] == ["qkv", "attention output", "feed-forward in", "feed-forward out"]
    assert whole["us"] == pytest.approx(sum(row["us"] for row in products), rel=1e-4)
    assert {"floor", "product by itself"} <= {line[22:] for line in kernel_times.table(found).splitlines()}


def test_a_product_is_timed_in_its_own_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []

    def once(call: Any, device: torch.device, seconds: float) -> list[float]:
        shapes.append(call().shape)
        return [3.0, 1.0, 2.0]

    monkeypatch.setattr(timing, "times_ms", once)
    assert timing.product_ms(CPU, "fp32", (5, 7, 3), 0) == 2.0
    assert timing.matmul_tflops(CPU, "fp32", 0) == pytest.approx(2 * 512**3 / 2e-3 / 1e12)
    assert shapes == [(5, 3), (512, 512)]


def test_floors_add_up_to_the_roofline() -> None:
    workload = texts.TextWorkload("bert-large", BERT_LARGE, CPU, 16_384, {})
    ceilings, point = Ceilings({"fp16": 650.0}, 4.2), points.parse("32x384")
    *parts, whole = kernel_times.floors(workload, point, "fp16", ceilings)
    least = layers.roofline_ms(workload.layers_at(point), 2, 650.0, 4.2)
    assert whole["us_per_layer"] * 24 == pytest.approx(least * 1e3, rel=1e-4)
    assert {part["part"]: part["bound"] for part in parts}["norms"] == "copy"
    assert parts[0]["bound"] == "matmul"


def test_bert_large_costs_what_is_known_of_it() -> None:
    counted = layers.encoder_layers(BERT_LARGE, (384,))
    assert layers.total_flops(counted) == 24 * (2 * 384 * (4 * 1024**2 + 2 * 1024 * 4096) + 4 * 384**2 * 1024)
    assert layers.total_flops(counted) == pytest.approx(246.9e9, rel=0.01)  # OpenVINO's model zoo: 246.93 GOps
    assert sum(layer.weights for layer in counted) == 24 * 12 * 1024**2


def test_points_are_parsed_and_said() -> None:
    assert points.parse("32x128") == Point(32, 128)
    assert points.parse("squad") == Point(256, None, "squad")
    assert points.lengths_of(Point(2, 5)) == (5, 5)
    assert [points.label(point) for point in (Point(4), Point(4, 8), points.parse("half"))] == ["4", "4 x 8", "half"]
    with pytest.raises(ValueError, match="neither length nor mix"):
        points.lengths_of(Point(4))


@pytest.mark.parametrize("text", ["", "x", "32", "32x", "0x8", "8x-1", "squid", "²x2", "1x2x3"])
def test_what_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="BATCHxLENGTH"):
        points.parse(text)


def test_mixes_are_what_the_help_says() -> None:
    squad, half, short = (points.lengths_of(points.parse(name)) for name in ("squad", "half", "short8"))
    assert (len(squad), max(squad)) == (256, 384)
    assert np.mean(squad) == pytest.approx(173, abs=1)
    assert (len(half), min(half), max(half), sum(half)) == (64, 3, 381, 64 * 192)
    assert (len(short), min(short), max(short)) == (8, 10, 128)


def test_ids_are_the_same_each_time_and_never_padding(spec: EngineSpec) -> None:
    workload = texts.TextWorkload("x", BertConfig(**{**TINY, "pad_token_id": 3}), CPU, 256, {})
    point = points.parse("short8")
    pads, packs = LoadedEngine(torch.zeros_like, {}), LoadedEngine(torch.zeros_like, {}, pads=False, token_budget=600)
    first, again = (workload.inputs(point, precision, pads) for precision in ("fp32", "fp16"))
    assert [batch.lengths for batch in first] == workload.micro_batches(point, pads)
    assert all(torch.equal(one.input_ids, other.input_ids) for one, other in zip(first, again, strict=True))
    ids = torch.cat([batch.input_ids for batch in first])
    packed = replace(workload, token_budget=0).inputs(point, "fp32", packs)
    assert len(packed) < len(first)
    assert torch.equal(torch.cat([batch.input_ids for batch in packed]), ids)
    assert (ids != 3).all()
    assert (int(ids.min()), int(ids.max())) == (0, 49)


@pytest.mark.parametrize("lengths", [MIXED, UNIFORM])
def test_the_fast_path_is_taken_and_right(spec: EngineSpec, lengths: tuple[int, ...]) -> None:
    batch = batch_of(lengths)
    wanted = engine_loading.load("hf-eager-fp32", spec).run(batch)
    engine = engine_loading.load("torch-fastpath-fp32", spec)
    with profile() as seen:
        found = engine.run(batch)
    assert relative_errors(found.numpy(), wanted.numpy()).max() < 1e-5
    calls = {event.key: event.count for event in seen.key_averages()}
    assert calls["aten::_transformer_encoder_layer_fwd"] == 2
    assert ("aten::_nested_tensor_from_mask" in calls) == (lengths == MIXED)


def test_the_fast_path_refuses_what_it_cannot_be(tmp_path: Path) -> None:
    spec = save(tmp_path, hidden_act="gelu_new")
    with pytest.raises(ValueError, match="bert with gelu_new came"):
        engine_loading.load("torch-fastpath-fp32", spec)


def test_hf_engines_attend_as_they_say(spec: EngineSpec) -> None:
    assert engine_loading.load("hf-eager-fp32", spec).details["attention"] == "eager"
    assert engine_loading.load("hf-sdpa-fp32", spec).details["attention"] == "sdpa"


def test_a_network_is_compiled_anew_for_each_shape(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_nothing(network: Any, **options: Any) -> Any:
        compiled.append(options)
        return network

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    engine, wanted = engine_loading.load("compile-fp32", spec), engine_loading.load("hf-sdpa-fp32", spec)
    for lengths in (UNIFORM, UNIFORM, (4,)):
        batch = batch_of(lengths)
        assert torch.equal(engine.run(batch), wanted.run(batch))
    assert compiled == [{"mode": "reduce-overhead", "dynamic": False}] * 2
    with pytest.raises(ValueError, match="sequences of one length"):
        engine.run(batch_of(MIXED))


# fp16's limit is that of the other fp16 networks here; fp32 differs by the order of sums alone.
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 1e-2)])
@pytest.mark.parametrize("lengths", [MIXED, UNIFORM])
def test_tensorrt_gets_the_same_network(
    spec: EngineSpec, precision: str, limit: float, lengths: tuple[int, ...]
) -> None:
    network = text_peers.load_network(spec).to(engines.DTYPES[precision])
    batch = batch_of(lengths)
    inputs = text_tensorrt.inputs_of(batch, 0, engines.DTYPES[precision])
    session = onnxruntime.InferenceSession(text_tensorrt.export(text_tensorrt.PlainBert(network), len(inputs) == 3))
    names = [one.name for one in session.get_inputs()]
    assert names == list(text_tensorrt.INPUTS[: len(inputs)])
    (hidden,) = session.run(None, {name: one.numpy() for name, one in zip(names, inputs, strict=True)})
    found = text_peers.unpadded(torch.from_numpy(hidden), batch).float().numpy()
    wanted = engine_loading.load("hf-eager-fp32", spec).run(batch).numpy()
    assert relative_errors(found, wanted).max() < limit


def test_points_longer_than_the_model_are_refused(spec: EngineSpec, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--device", "cpu", "--model-dir", str(spec.model_dir), "--points", "1x129"]
    assert bench_model.main(["text-encoder", *options]) == 1
    assert "1 x 129 has 129 tokens, and the model takes 128; --points" in capsys.readouterr().err


def test_positions_of_a_roberta_begin_behind_the_padding() -> None:
    config = RobertaConfig(max_position_embeddings=130)  # pad_token_id 1
    texts.check(config, [Point(1, 128)])
    with pytest.raises(ValueError, match="129 tokens, and the model takes 128"):
        texts.check(config, [Point(1, 129)])


def test_what_is_no_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="no hidden_size; wanted: a BERT-style encoder"):
        texts.check(ResNetConfig(), [])


@pytest.mark.parametrize("text", ["fused-fp16", "fused:1x8", "fused-fp16:1"])
def test_kernels_are_asked_for_by_engine_and_point(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_model.main(["text-encoder", "--kernels", text])
    assert "wanted: " in capsys.readouterr().err


def test_fp8_is_a_precision_once_the_engines_have_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(engines.DTYPES, "fp8", torch.float16)
    assert engine_loading.split_name("fused-fp8") == ("fused", "fp8")
    assert layers.item_bytes("fp8") == 1

    def refuse(device: torch.device, precision: str, seconds: float) -> float:
        if precision == "fp8":
            raise RuntimeError("no such thing\nhere")
        return 1.0

    monkeypatch.setattr(timing, "matmul_tflops", refuse)
    assert shared_command.measure_ceilings(CPU, ["fused-fp8"], 0).matmul_tflops == {"fp16": 1.0}
    assert "no matmul in fp8: no such thing\n" in capsys.readouterr().out


def test_random_weights_need_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Preset("text-encoder", architecture={"hidden_size": 64, "num_hidden_layers": 1})
    monkeypatch.setattr(texts, "PRESET", tiny)
    folder = texts.model_folder(None, tmp_path / "model", False)
    spec = EngineSpec("text-encoder", folder, CPU, "fp32", task="embeddings")
    workload = texts.workload(spec, [Point(2, 4)], 256)
    assert workload.model == "bert-1x64"
    assert workload.reference(Point(2, 4)).shape == (8, 64)


def test_models_are_named_by_their_size() -> None:
    assert texts.model_name(BERT_LARGE) == "bert-large"
    assert texts.model_name(BertConfig()) == "bert-base"
