"""Engines are found by file, chosen by rank and by what they can run, and refused in words."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from handlers import engines
from handlers.engines import EngineSpec, LoadedEngine, text_networks
from handlers.engines.plans import PlanError
from handlers.selection import candidates, choosing, gpu_timing, references
from handlers.selection.choosing import load_chosen

pytestmark = pytest.mark.usefixtures("pytorch_alone")

PLUGIN = """
import torch
from handlers.engines import Engine, LoadedEngine
class Plugged(Engine):
    kinds = ("image-classifier",)
    rank = 1000
    problem = None
    def why_not_here(self, spec):
        return self.problem
    def load(self, spec):
        return LoadedEngine(lambda images: torch.full((len(images), 2), 7.0), {"from": str(spec.model_dir)})
ENGINE = Plugged()
"""


def spec_of(kind: str = "image-classifier", folder: Path = Path("nowhere")) -> EngineSpec:
    return EngineSpec(kind, folder, torch.device("cpu"), "fp32", "embeddings" if kind == "text-encoder" else "")


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """plug(code): a new file in an engines folder, plugged.py, and nothing else."""

    def write(code: str) -> None:
        (tmp_path / "plugged.py").write_text(code, encoding="utf-8")
        monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path)])

    yield write
    sys.modules.pop("handlers.engines.plugged", None)
    engines.__dict__.pop("plugged", None)


@pytest.fixture
def plugin(plug: Callable[[str], None]) -> Any:
    """The engine in PLUGIN."""
    plug(PLUGIN)
    return engines.get("plugged")


@pytest.mark.parametrize("kind", ["image-classifier", "text-encoder"])
def test_the_reference_engine_runs_both_kinds(kind: str) -> None:
    assert "torch_eager" in engines.names(kind)
    assert candidates.choose("torch_eager", spec_of(kind)) == ["torch_eager"]


def test_names_come_best_first() -> None:
    ranks = [engines.get(name).rank for name in engines.names()]
    assert ranks == sorted(ranks, reverse=True)
    assert set(engines.names("image-classifier")) <= set(engines.names())
    assert engines.names("no such kind") == []


def test_every_engine_offers_what_the_folder_promises() -> None:
    assert {"cudnn", "fused", "onnxruntime", "tensorrt", "torch_eager"} <= set(engines.names())
    for name in engines.names():
        engine = engines.get(name)
        assert set(engine.kinds) <= {"image-classifier", "text-encoder"}, name
        assert isinstance(engine.rank, int), name


def test_what_is_optional_has_a_default() -> None:
    spec, engine = spec_of(), engines.get("torch_eager")
    assert engine.why_never(spec) is engine.why_auto_skips(spec) is engine.why_auto_refuses(spec) is None


def test_an_engine_without_a_required_member_is_refused_by_name(plug: Callable[[str], None]) -> None:
    plug(PLUGIN.replace("    rank = 1000\n", ""))
    with pytest.raises(TypeError, match=r"Plugged.*rank"):
        engines.names()


def test_what_is_no_engine_is_refused_by_its_file(plug: Callable[[str], None]) -> None:
    plug(PLUGIN.replace("ENGINE = Plugged()", "ENGINE = Plugged"))
    with pytest.raises(TypeError, match=r"ENGINE of handlers/engines/plugged\.py is <class .*; wanted: an object of"):
        engines.names()


def test_the_example_in_the_documentation_is_an_engine(plug: Callable[[str], None]) -> None:
    example = re.search(r"(?<=\n)    class .*    ENGINE = \w+\(\)\n", str(engines.__doc__), re.DOTALL)
    assert example
    plug(f"from handlers.engines import Engine, EngineSpec, LoadedEngine\n{textwrap.dedent(example[0])}")
    assert "plugged" in engines.names("image-classifier")
    assert engines.load("plugged", spec_of()).run(torch.ones(2, 3, 4, 4)).tolist() == [[2.0, 2.0, 2.0]] * 2


def test_auto_takes_one_that_can_run_here() -> None:
    (name,) = candidates.choose("auto", spec_of())
    assert engines.get(name).why_not_here(spec_of()) is None


@pytest.mark.parametrize("asked", ["no_such", "", "..torch_eager", "torch_eager "])
def test_an_unknown_engine_is_refused_with_the_known_ones(asked: str) -> None:
    with pytest.raises(ValueError, match=r"known: auto, .*torch_eager"):
        candidates.choose(asked, spec_of())


def test_a_new_file_is_a_new_engine(plugin: Any) -> None:
    assert engines.names()[0] == "plugged"
    assert candidates.choose("auto", spec_of()) == ["plugged"]
    assert candidates.choose("plugged", spec_of()) == ["plugged"]
    engine: LoadedEngine = engines.load("plugged", spec_of(folder=Path("archive")))
    assert engine.run(torch.zeros(3, 1)).tolist() == [[7.0, 7.0]] * 3
    assert engine.details == {"from": "archive"}


def test_an_engine_is_asked_for_its_own_kind_only(plugin: Any, minilm_folder: Path) -> None:
    assert "plugged" not in engines.names("text-encoder")
    assert candidates.choose("auto", spec_of("text-encoder", minilm_folder)) != ["plugged"]
    with pytest.raises(ValueError, match="'plugged' does not run a text-encoder"):
        candidates.choose("plugged", spec_of("text-encoder"))


def test_auto_passes_over_an_engine_that_cannot_run_here(plugin: Any) -> None:
    plugin.problem = "no such hardware"
    assert candidates.choose("auto", spec_of()) != ["plugged"]
    with pytest.raises(ValueError, match="plugged cannot run here: no such hardware"):
        candidates.choose("plugged", spec_of())


@pytest.fixture
def waiting(plugin: Any) -> Any:
    """The plugged engine, which could run but is not ready."""
    plugin.why_auto_skips = lambda _: "no plan lies in the archive"
    return plugin


def test_auto_says_which_engine_it_left_out(
    waiting: Any, digits_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, engine = choosing.load_chosen("auto", spec_of(folder=digits_folder))
    assert name != "plugged"
    assert engine.details["leftOut"] == {"plugged": "no plan lies in the archive"}
    assert "engine plugged left out: no plan lies in the archive" in caplog.text


def test_what_auto_adds_leaves_the_rest_of_the_engine_alone(
    waiting: Any, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = LoadedEngine(lambda images: images, {"library": "x"}, pads=False, token_budget=5)
    monkeypatch.setattr(engines, "load", lambda name, spec: packed)
    _, engine = choosing.load_chosen("auto", spec_of(folder=digits_folder), check=False)
    found = (engine.run, engine.pads, engine.token_budget, engine.details["library"])
    assert found == (packed.run, False, 5, "x")


def test_what_was_asked_for_or_cannot_run_is_not_left_out(waiting: Any, digits_folder: Path) -> None:
    assert choosing.load_chosen("plugged", spec_of(folder=digits_folder), check=False)[0] == "plugged"
    assert "leftOut" not in choosing.load_chosen("torch_eager", spec_of(folder=digits_folder))[1].details
    waiting.problem = "no such hardware"
    assert "leftOut" not in choosing.load_chosen("auto", spec_of(folder=digits_folder))[1].details


def test_engines_that_fail_or_miss_parity_are_dropped_and_named(
    plugin: Any, digits_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = torch.zeros(2, 3, 32, 32)
    logits = engines.load("torch_eager", spec_of(folder=digits_folder)).run(images)
    reference = references.Images(images, logits)
    plugin.load = lambda _: (_ for _ in ()).throw(PlanError("model.plan is torn"))
    table = gpu_timing.Table()
    found = gpu_timing.load_passing(spec_of(folder=digits_folder), ["plugged", "torch_eager"], reference, table)
    assert list(found) == ["torch_eager"]
    assert table.as_dict()["dropped"] == {"plugged": "PlanError: model.plan is torn"}
    assert "engine plugged dropped: PlanError: model.plan is torn" in caplog.text
    for wrong, named in ((1.001, "relative error 0.001 against fp32"), (torch.nan, "not finite")):
        plugin.load = lambda _, wrong=wrong: LoadedEngine(lambda images: logits[: len(images)] * wrong, {})
        with pytest.raises(ValueError, match=f"no engine loads and passes parity in fp32: .*{named}"):
            gpu_timing.load_passing(spec_of(folder=digits_folder), ["plugged"], reference, gpu_timing.Table())


def test_every_batch_size_is_checked(plugin: Any, digits_folder: Path) -> None:
    """One that is right for a few images and wrong for more, as kernels of its own for these may be."""
    spec = dataclasses.replace(spec_of(folder=digits_folder), batch_size=4)
    images = torch.randn(4, 3, 32, 32)
    exact = engines.load("torch_eager", spec)
    plugin.load = lambda _: LoadedEngine(lambda batch: exact.run(batch) * (2 if len(batch) > 2 else 1), {})
    table = gpu_timing.Table()
    names, reference = ["plugged", "torch_eager"], references.Images(images, exact.run(images))
    assert list(gpu_timing.load_passing(spec, names, reference, table)) == ["torch_eager"]
    assert table.dropped["plugged"].startswith("relative error 1 against fp32")


def test_what_refuses_keeps_auto_from_serving(plugin: Any, digits_folder: Path) -> None:
    plugin.why_auto_refuses = lambda _: "the plan is another machine's"
    with pytest.raises(ValueError, match="engine plugged refuses: the plan is another machine's"):
        candidates.choose("auto", spec_of(folder=digits_folder))
    plugin.problem = "no such hardware"
    assert candidates.choose("auto", spec_of(folder=digits_folder)) == ["torch_eager"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_spec_knows_its_dtype(precision: str) -> None:
    spec = EngineSpec("image-classifier", Path(), torch.device("cpu"), precision)
    assert str(spec.dtype) == {"fp32": "torch.float32", "fp16": "torch.float16", "bf16": "torch.bfloat16"}[precision]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_torch_eager_answers_logits_in_the_specs_dtype(
    digits_folder: Path, precision: str, dtype: torch.dtype
) -> None:
    engine = engines.load(
        "torch_eager", EngineSpec("image-classifier", digits_folder, torch.device("cpu"), precision)
    )
    logits = engine.run(torch.zeros(2, 3, 32, 32, dtype=dtype).to(memory_format=torch.channels_last))
    assert (logits.shape, logits.dtype) == ((2, 10), dtype)
    assert engine.details["memoryFormat"] == "channels_last"


def test_the_handler_says_which_engine_it_took(
    plugin: Any, load_handler: Callable[..., Any], digits_folder: Path, tmp_path: Path
) -> None:
    from handlers.image_classifier import ImageClassifier

    exact = engines.load("torch_eager", spec_of(folder=digits_folder))
    plugin.load = lambda spec: LoadedEngine(exact.run, {"from": str(spec.model_dir)})
    section = {"preprocess": {"size": 32, "resize": 32}, "planCache": str(tmp_path)}
    handler = load_handler(ImageClassifier, digits_folder, **section)
    engine = handler.model.description["engine"]
    assert (engine["name"], engine["from"]) == ("plugged", str(digits_folder))
    assert engine["checked"]["relativeError"] < 1e-4


def test_auto_with_no_engine_says_why_of_each(tmp_path: Path) -> None:
    """An fp8 archive without its scales, say: fused lacks those, and PyTorch's own modules know no fp8."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    spec = EngineSpec("text-encoder", tmp_path, torch.device("cpu"), "fp8", task="embeddings")
    with pytest.raises(ValueError, match=r"no engine can run this here\. .*fused: .*fp8.*torch_eager: .*fp8"):
        load_chosen("auto", spec)


def test_what_a_config_wants_returned_for_training_is_left_out(tmp_path: Path) -> None:
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    asked = {**tiny, "return_dict": False, "output_hidden_states": True}
    transformers.BertModel(transformers.BertConfig.from_dict(asked)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (saved["return_dict"], saved["output_hidden_states"]) == (False, True)
    for model in (
        text_networks.load_transformer(tmp_path, "embeddings", dtype=torch.float32).eval(),
        text_networks.empty_transformer(tmp_path, "embeddings"),
    ):
        found = model(input_ids=torch.tensor([[1, 2, 3]]))
        assert found.last_hidden_state.shape == (1, 3, 32)
        assert found.hidden_states is None
