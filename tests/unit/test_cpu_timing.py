"""On a CPU the fastest engine and precision serve, of those that give the fp32 outputs; what was measured is said."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from handlers import engines, placement
from handlers.engines import EngineSpec, LoadedEngine, onnxruntime, plans
from handlers.image_classifier import ImageClassifier
from handlers.selection import choosing, cpu_timing, references
from handlers.selection.cpu_timing import Measurement

CPU = torch.device("cpu")
IN_BF16 = {"bf16": {"passed": True}}


def specs_of(folder: Path, tmp_path: Path, *precisions: str) -> list[EngineSpec]:
    spec = EngineSpec("image-classifier", folder, CPU, "fp32", image_size=32, batch_size=8, plan_cache=tmp_path / "c")
    return [dataclasses.replace(spec, precision=precision) for precision in precisions or ("bf16", "fp32")]


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """times(1.0, 2.0, ...): the milliseconds that are measured, two to a candidate; what is left of them."""

    def set_times(*wanted: float) -> list[float]:
        left = list(wanted)

        def least_ms(run: Callable[[], object]) -> float:
            run()
            return left.pop(0)

        monkeypatch.setattr(cpu_timing, "least_ms", least_ms)
        return left

    return set_times


CHOICES = {  # one image and four: torch_eager in bf16, onnxruntime, torch_eager in fp32
    "torch_eager bf16": (1.0, 2.0, 3.0, 3.0, 3.0, 3.0),
    "onnxruntime fp32": (3.0, 3.0, 1.0, 2.0, 3.0, 3.0),
    "torch_eager fp32": (3.0, 3.0, 3.0, 3.0, 1.0, 2.0),
}


@pytest.mark.parametrize("fastest", CHOICES)
def test_the_fastest_serves_and_the_times_are_said(
    digits_folder: Path,
    tmp_path: Path,
    times: Callable[..., list[float]],
    fastest: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    times(*CHOICES[fastest])
    with caplog.at_level(logging.INFO):
        name, spec, engine = choosing.load_best("auto", specs_of(digits_folder, tmp_path))
    assert f"{name} {spec.precision}" == fastest
    said: Any = engine.details["measured"]
    assert said["when"] == "here"
    assert said["milliseconds"][fastest] == {"1 image": 1.0, "4 images": 2.0}
    assert list(said["milliseconds"]) == list(CHOICES)
    assert said["figures"]["onnxruntime fp32"]["relativeError"] < 1e-4
    checked: Any = engine.details["checked"]
    assert (checked["when"], checked["against"]) == ("here", references.OF_THIS_MACHINE)
    assert checked["relativeError"] == said["figures"][fastest]["relativeError"]
    assert str(said["milliseconds"]) in caplog.text
    assert engine.run(torch.randn(2, 3, 32, 32).to(spec.dtype)).dtype == spec.dtype
    json.dumps(engine.details, allow_nan=False)


def test_one_text_counts_as_much_as_several() -> None:
    times = {"a": {"1 text": 1.0, "7 texts": 90.0}, "b": {"1 text": 2.0, "7 texts": 60.0}}
    found = Measurement(milliseconds=times)
    assert found.slowness("a") < found.slowness("b")


def test_later_loads_measure_nothing_until_something_changes(
    digits_folder: Path, tmp_path: Path, times: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = times(*CHOICES["onnxruntime fp32"], *CHOICES["torch_eager bf16"], *CHOICES["torch_eager fp32"])
    choosing.load_best("auto", specs_of(digits_folder, tmp_path))
    monkeypatch.setattr(references, "of", None)  # nothing is compared again either
    name, spec, engine = choosing.load_best("auto", specs_of(digits_folder, tmp_path))
    said: Any = engine.details["measured"]
    assert (name, spec.precision, said["when"]) == ("onnxruntime", "fp32", "earlier")
    assert len(left) == 12
    monkeypatch.undo()
    left = times(*CHOICES["torch_eager bf16"], *CHOICES["torch_eager fp32"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert choosing.load_best("auto", specs_of(digits_folder, tmp_path))[1].precision == "bf16"
    monkeypatch.setattr(placement, "cpu_name", lambda: "another CPU")
    assert choosing.load_best("auto", specs_of(digits_folder, tmp_path))[0] == "torch_eager"
    assert not left


@pytest.mark.parametrize("content", ["{", "[]", '{"chosen": ["cudnn", "fp16"]}'])
def test_what_was_kept_and_cannot_be_read_is_measured_again(
    digits_folder: Path, tmp_path: Path, times: Callable[..., list[float]], content: str
) -> None:
    left = times(*CHOICES["onnxruntime fp32"] * 2)
    choosing.load_best("auto", specs_of(digits_folder, tmp_path))
    kept, *others = (tmp_path / "c").glob("cpu-*.json")
    assert not others
    kept.write_text(content, encoding="utf-8")
    choosing.load_best("auto", specs_of(digits_folder, tmp_path))
    assert not left
    assert json.loads(kept.read_text(encoding="utf-8"))["chosen"] == ["onnxruntime", "fp32"]


def test_where_nothing_can_be_kept_it_measures_each_time(
    digits_folder: Path, tmp_path: Path, times: Callable[..., list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "c").write_text("a file in the folder's place", encoding="utf-8")
    left = times(*CHOICES["onnxruntime fp32"] * 2)
    for _ in range(2):
        assert choosing.load_best("auto", specs_of(digits_folder, tmp_path))[0] == "onnxruntime"
    assert not left
    assert "cannot be kept" in caplog.text
    assert "there is no lock" in caplog.text


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[Any], Any]], None]:
    """spoil("onnxruntime", what to make of its outputs)"""

    def change(name: str, outputs: Callable[[Any], Any]) -> None:
        engine = engines.get(name)
        load = engine.load

        def spoilt(spec: EngineSpec) -> LoadedEngine:
            right = load(spec).run
            return LoadedEngine(lambda images: outputs(right(images)), {})

        monkeypatch.setattr(engine, "load", spoilt)

    return change


WRONG = {"zeros": (torch.zeros_like, "relative error 1 against fp32; at most 0.0001"), "memory": (None, "TypeError")}


@pytest.mark.parametrize(("outputs", "why"), WRONG.values(), ids=list(WRONG))
def test_one_that_is_wrong_or_raises_does_not_serve(
    digits_folder: Path, tmp_path: Path, spoil: Callable[..., None], outputs: Any, why: str
) -> None:
    spoil("onnxruntime", outputs)
    name, _, engine = choosing.load_best("auto", specs_of(digits_folder, tmp_path, "fp32"))
    assert name == "torch_eager"
    dropped: Any = engine.details["dropped"]
    assert why in dropped["onnxruntime fp32"]
    # What is wrong stays wrong; what did not load may load the next time.
    assert bool(list((tmp_path / "c").glob("cpu-*.json"))) == (outputs is not None)


def test_where_all_are_wrong_none_serves(digits_folder: Path, tmp_path: Path, spoil: Callable[..., None]) -> None:
    specs = specs_of(digits_folder, tmp_path, "fp32")
    references.compute(dataclasses.replace(specs[0])).save(tmp_path)
    for path in digits_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name in ("onnxruntime", "torch_eager"):
        spoil(name, torch.zeros_like)
    with pytest.raises(ValueError, match=r"no engine loads and gives this model's outputs here.*torch_eager fp32"):
        choosing.load_best("auto", specs_of(tmp_path, tmp_path, "fp32"))


def test_of_pytorchs_engines_the_first_that_passes_is_timed(
    minilm_folder: Path, tmp_path: Path, times: Callable[..., list[float]]
) -> None:
    times(*[2.0] * 6)
    spec = EngineSpec("text-encoder", minilm_folder, CPU, "bf16", task="embeddings", plan_cache=tmp_path)
    _, _, engine = choosing.load_best("auto", [spec, dataclasses.replace(spec, precision="fp32")])
    said: Any = engine.details["measured"]
    assert list(said["milliseconds"]) == ["fused bf16", "onnxruntime fp32", "fused fp32"]
    for ran in said["milliseconds"].values():
        assert len(ran) == 2
        assert all("text" in key and "token" in key for key in ran)


@pytest.mark.parametrize(("lengths", "indices"), [([300], [0]), ([100, 300, 2, 90, 80], [2, 4, 3]), ([256], [0])])
def test_long_texts_are_not_timed(lengths: Sequence[int], indices: list[int]) -> None:
    assert cpu_timing._shortest(lengths) == indices


def test_a_named_engine_is_measured_in_its_precisions(
    digits_folder: Path, tmp_path: Path, times: Callable[..., list[float]]
) -> None:
    left = times(2.0, 2.0, 1.0, 1.0)
    name, spec, _ = choosing.load_best("torch_eager", specs_of(digits_folder, tmp_path))
    assert (name, spec.precision, left) == ("torch_eager", "fp32", [])


def test_a_named_engine_of_one_precision_is_compared_alone(digits_folder: Path, tmp_path: Path) -> None:
    name, spec, engine = choosing.load_best("onnxruntime", specs_of(digits_folder, tmp_path))
    assert (name, spec.precision) == ("onnxruntime", "fp32")
    assert "measured" not in engine.details
    assert "checked" in engine.details


def test_what_no_engine_runs_is_refused_by_the_first_precision(digits_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engine cudnn cannot run here: it needs an NVIDIA GPU"):
        choosing.load_best("cudnn", specs_of(digits_folder, tmp_path))


@pytest.mark.parametrize("outputs", [None, torch.zeros_like, "raises"], ids=["right", "wrong", "raises"])
def test_packaging_compares_what_would_serve_and_measures_nothing(
    digits_folder: Path, tmp_path: Path, spoil: Callable[..., None], outputs: Any
) -> None:
    if outputs:
        spoil("onnxruntime", outputs)
    name, _, engine = choosing.load_best("auto", specs_of(digits_folder, tmp_path, "fp32"), check=False)
    assert name == ("torch_eager" if outputs else "onnxruntime")
    assert not {"measured", "checked"} & engine.details.keys()
    assert ("onnxruntime fp32" in dict(engine.details.get("dropped", {}))) == bool(outputs)  # type: ignore[call-overload]
    assert not (tmp_path / "c").exists()


def test_one_worker_measures_at_a_time(
    digits_folder: Path, tmp_path: Path, times: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Path] = []

    @contextmanager
    def locked(folder: Path) -> Iterator[None]:
        held.append(folder)
        yield
        assert list((tmp_path / "c").glob("cpu-*.json")), "let go before others could read what was measured"

    times(*CHOICES["onnxruntime fp32"])
    monkeypatch.setattr(plans, "locked", locked)
    choosing.load_best("auto", specs_of(digits_folder, tmp_path))
    assert held == [tmp_path / "c" / "cpu"]


def test_the_least_of_several_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    assert 0 <= cpu_timing.least_ms(lambda: calls.append(1)) < 10
    assert len(calls) == 1 + cpu_timing.LEAST_RUNS
    calls.clear()
    monkeypatch.setattr(cpu_timing, "ENOUGH_S", 60.0)
    assert 0 <= cpu_timing.least_ms(lambda: calls.append(1)) < 10
    assert len(calls) == 1 + cpu_timing.MOST_RUNS


def test_the_description_says_why(
    load_handler: Callable[..., Any],
    digits_folder: Path,
    tmp_path: Path,
    times: Callable[..., list[float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement, "cpu_has_bf16", lambda: True)
    for path in digits_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "provenance.json").write_text(json.dumps({"parity": IN_BF16}), encoding="utf-8")
    section = {"preprocess": {"size": 32, "resize": 32}, "precision": "auto", "planCache": str(tmp_path / "c")}
    times(*CHOICES["onnxruntime fp32"])
    described = load_handler(ImageClassifier, tmp_path, **section).model.description
    assert described["engine"]["name"] == "onnxruntime"
    assert described["precision"] == {
        "name": "fp32",
        "why": "the fastest here of bf16 and fp32, where they give the outputs of fp32",
    }
    described = load_handler(ImageClassifier, tmp_path, **section, engine="onnxruntime").model.description
    assert described["precision"] == {"name": "fp32", "why": "the engine that is asked for runs no bf16 here"}


def test_precisions() -> None:
    gpu = torch.device("cuda", 0)
    assert list(placement.precisions("auto", gpu, {"fp16": {"passed": True}})) == ["fp16"]
    assert list(placement.precisions("bf16", CPU, {})) == ["bf16"]
    assert list(placement.precisions("auto", CPU, {})) == ["fp32"]


def test_names_of_other_libraries_are_engines() -> None:
    assert set(cpu_timing.NOT_PYTORCH) <= set(engines.names())
    assert max(engines.get(name).rank for name in engines.names()) == onnxruntime.ENGINE.rank
