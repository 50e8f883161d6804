"""Prompts, Dense, LayerNorm and shorter embeddings of sentence-transformers' folders, by their formulas."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from archive import resolve
from archive.checkpoints import text_checkpoints
from archive.checkpoints.errors import CheckpointError
from archive.command_line import parse
from handlers.text_encoder import TextEncoder
from tests.parity.sentence_reference import TEXTS, assert_sentence_transformers_agrees, reference, write

Serve = Callable[..., TextEncoder]
Ask = Callable[..., list[Any]]
Checkpoint = Callable[..., Path]
Make = Callable[..., Path]

SIZE = 32
PROMPTS = {"query": "search for this: ", "passage": "passage: ", "empty": ""}
MEAN = {"word_embedding_dimension": SIZE, "pooling_mode_mean_tokens": True}
ACTIVATION = "torch.nn.modules.activation."
IDENTITY = "torch.nn.modules.linear.Identity"


def dense(into: int, out: int, activation: str | None = None, **more: object) -> tuple[str, dict[str, object]]:
    named = {} if activation is None else {"activation_function": activation}
    return "Dense", {"in_features": into, "out_features": out, "bias": True, **named, **more}


def norm(size: int) -> tuple[str, dict[str, object]]:
    return "LayerNorm", {"dimension": size}


NORMALIZE: tuple[str, dict[str, object]] = ("Normalize", {})


def weights_of(kind: str, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    if kind == "LayerNorm":
        return {"norm.weight": torch.randn(config["dimension"]), "norm.bias": torch.randn(config["dimension"])}
    into, out = config["in_features"], config.get("out_features")
    if type(out) is not int:
        return {}
    found = {"linear.weight": torch.randn(out, into)}
    if config.get("bias", True):
        found["linear.bias"] = torch.randn(out)
    if config.get("use_residual") and into != out:
        found["residual.weight"] = torch.randn(out, into)
    return found


@pytest.fixture
def serve_texts(serve_texts: Serve) -> Serve:
    """The fixture of that name, with the engine that loads fastest."""

    def serve(*arguments: Any, **section: object) -> TextEncoder:
        return serve_texts(*arguments, **{"engine": "torch_eager", **section})

    return serve


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Make:
    """folder(*modules behind the pooling, pooling={...}, whole={...}) -> a small sentence-transformers folder."""

    def make(
        *behind: tuple[str, dict[str, object]],
        pooling: Mapping[str, object] = MEAN,
        whole: Mapping[str, object] | None = None,
        pickles: bool = False,
    ) -> Path:
        path = Path(shutil.copytree(checkpoint("distilbert", "AutoModel"), tmp_path / "sentences"))
        torch.manual_seed(1)
        modules = [("Transformer", {}), ("Pooling", dict(pooling)), *behind]
        entries = []
        for index, (kind, config) in enumerate(modules):
            name = f"{index}_{kind}" if index else ""
            entries.append(
                {"idx": index, "name": str(index), "path": name, "type": f"sentence_transformers.models.{kind}"}
            )
            if index and kind != "Normalize":
                write(path / name / "config.json", config)
            if kind in ("Dense", "LayerNorm"):
                tensors = weights_of(kind, config)
                if pickles:
                    torch.save(tensors, path / name / "pytorch_model.bin")
                else:
                    save_file(tensors, path / name / "model.safetensors")
        write(path / "modules.json", entries)
        if whole is not None:
            write(path / "config_sentence_transformers.json", whole)
        return path

    return make


BEHIND: dict[str, list[tuple[str, dict[str, object]]]] = {
    "LaBSE: Dense with tanh, Normalize": [dense(SIZE, SIZE, f"{ACTIVATION}Tanh"), NORMALIZE],
    "distiluse: a smaller Dense": [dense(SIZE, 8, f"{ACTIVATION}Tanh")],
    "tanh is what no name means": [dense(SIZE, 8)],
    "two Dense without a bias": [
        dense(SIZE, 96, IDENTITY, bias=False),
        dense(96, 16, IDENTITY, bias=False),
        NORMALIZE,
    ],
    "other activations": [dense(SIZE, SIZE, f"{ACTIVATION}GELU"), dense(SIZE, SIZE, "torch.nn.SiLU")],
    "a residual": [dense(SIZE, SIZE, f"{ACTIVATION}ReLU", use_residual=True)],
    "a projected residual": [dense(SIZE, 8, f"{ACTIVATION}Tanh", use_residual=True)],
    "LayerNorm": [norm(SIZE)],
    "LayerNorm, Dropout, Dense, Normalize": [norm(SIZE), ("Dropout", {"dropout": 0.5}), dense(SIZE, 8), NORMALIZE],
    "Normalize between": [NORMALIZE, dense(SIZE, 8, IDENTITY), NORMALIZE, NORMALIZE],
}


@pytest.mark.parametrize("case", BEHIND)
def test_modules_behind_the_pooling(folder: Make, serve_texts: Serve, ask: Ask, case: str) -> None:
    path = folder(*BEHIND[case], pickles=case.startswith("distiluse"))
    wanted = reference(path, TEXTS)
    assert_sentence_transformers_agrees(path, wanted)
    handler = serve_texts(path)
    np.testing.assert_allclose(ask(handler, TEXTS, truncate=True), wanted, rtol=2e-6, atol=2e-5)
    assert handler.model.description["embedding"]["dimensions"] == wanted.shape[1]
    raw = np.asarray(ask(handler, TEXTS, truncate=True, normalize=True))
    np.testing.assert_allclose(np.linalg.norm(raw, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("engine", ["fused", "torch_eager", "onnxruntime"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_engine_runs_the_same_head_in_fp32(
    folder: Make, serve_texts: Serve, ask: Ask, engine: str, precision: str
) -> None:
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
        if precision != "fp32":
            pytest.skip("onnxruntime runs fp32")
    path = folder(norm(SIZE), dense(SIZE, 8), NORMALIZE)
    handler = serve_texts(path, engine=engine, precision=precision)
    assert handler.model.description["engine"]["name"] == engine
    assert handler.model.description["embedding"]["head"]["modules"] == ["LayerNorm 32", "Dense 32 -> 8, Tanh"]
    found, wanted = np.asarray(ask(handler, TEXTS, truncate=True)), reference(path, TEXTS)
    assert (found * wanted).sum(axis=1).min() > (0.99999 if precision == "fp32" else 0.99)


def test_pooling_of_several_modes_before_a_dense(folder: Make, serve_texts: Serve, ask: Ask) -> None:
    path = folder(dense(2 * SIZE, 8), pooling={**MEAN, "pooling_mode_max_tokens": True})
    wanted = reference(path, TEXTS)
    assert_sentence_transformers_agrees(path, wanted)
    np.testing.assert_allclose(ask(serve_texts(path), TEXTS, truncate=True), wanted, rtol=2e-6, atol=2e-5)


REFUSED: dict[str, tuple[str, list[tuple[str, dict[str, object]]]]] = {
    "a foreign activation": ("activation_function 'mine.Act', which is not served", [dense(SIZE, 8, "mine.Act")]),
    "an activation with weights": ("'torch.nn.modules.activation.PReLU'", [dense(SIZE, 8, f"{ACTIVATION}PReLU")]),
    "no activation's class": ("'torch.nn.functional.relu'", [dense(SIZE, 8, "torch.nn.functional.relu")]),
    "an unknown key": ("says sing, which is not known", [dense(SIZE, 8, sing=1)]),
    "Dense on tokens": (
        "module_input_name: 'token_embeddings'",
        [dense(SIZE, 8, module_input_name="token_embeddings")],
    ),
    "sizes that do not fit": ("takes embeddings of 9 numbers, and gets 8", [dense(SIZE, 8), dense(9, 8)]),
    "another module": ("Transformer -> Pooling -> CNN", [("CNN", {})]),
    "a size that is none": ("out_features: '8'", [("Dense", {"in_features": 32, "out_features": "8"})]),
    "no size": ("names no out_features", [("Dense", {"in_features": 32})]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_modules_that_are_refused(folder: Make, case: str) -> None:
    expected, behind = REFUSED[case]
    with pytest.raises(CheckpointError) as refused:
        text_checkpoints.read(str(folder(*behind)))
    assert expected in str(refused.value)


WRONG_WEIGHTS: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], object]]] = {
    "one is missing": ("missing: linear.bias", lambda weights: weights.pop("linear.bias")),
    "one more": ("unexpected: more", lambda weights: weights.update(more=torch.ones(1))),
    "another shape": (
        "misshapen: linear.weight",
        lambda weights: weights.update({"linear.weight": torch.ones(8, 31)}),
    ),
    "NaN": ("not finite", lambda weights: weights["linear.bias"].fill_(torch.nan)),
    "whole numbers": (
        "not dense floating-point",
        lambda weights: weights.update({"linear.bias": torch.ones(8, dtype=torch.int8)}),
    ),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_weights_that_are_refused(folder: Make, case: str) -> None:
    expected, change = WRONG_WEIGHTS[case]
    path = folder(dense(SIZE, 8))
    weights = load_file(path / "2_Dense" / "model.safetensors")
    change(weights)
    save_file(weights, path / "2_Dense" / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        text_checkpoints.read(str(path))
    assert expected in str(refused.value)


def test_a_module_without_weights_is_refused(folder: Make) -> None:
    path = folder(dense(SIZE, 8))
    (path / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="2_Dense has no weights"):
        text_checkpoints.read(str(path))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--pooling", "mean", "max"), "follows a pooling that gives 64 numbers"),
        (("--dimensions", "9"), "an embedding has 8 numbers, and 9 were asked for"),
    ],
)
def test_options_that_do_not_fit_the_head(folder: Make, arguments: tuple[str, ...], expected: str) -> None:
    options: Any = parse(("text-encoder", "--weights", str(folder(dense(SIZE, 8))), *arguments))
    with pytest.raises(CheckpointError, match=expected):
        resolve.text_model(options)


class TestPrompts:
    @pytest.mark.parametrize("default", [None, "query", "document"])
    def test_each_name_and_none(self, folder: Make, serve_texts: Serve, ask: Ask, default: str | None) -> None:
        path = folder(whole={"prompts": PROMPTS, "default_prompt_name": default})
        handler = serve_texts(path)
        for name, prompt in {**PROMPTS, "document": "", "": ""}.items():
            answers = ask(handler, TEXTS, truncate=True, prompt_name=name)
            np.testing.assert_allclose(answers, reference(path, TEXTS, prompt), rtol=2e-6, atol=2e-5)
            if name:
                assert_sentence_transformers_agrees(path, reference(path, TEXTS, prompt), prompt_name=name)
        plain = reference(path, TEXTS, PROMPTS["query"] if default == "query" else "")
        np.testing.assert_allclose(ask(handler, TEXTS, truncate=True), plain, rtol=2e-6, atol=2e-5)
        assert_sentence_transformers_agrees(path, plain)
        assert handler.model.description["prompts"] == {"default": default, "texts": {**PROMPTS, "document": ""}}

    @pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len", "weightedmean", "last"])
    def test_a_prompt_that_pooling_leaves_out(self, folder: Make, serve_texts: Serve, ask: Ask, mode: str) -> None:
        key = f"pooling_mode_{mode}" + ("token" if mode == "last" else "_token" if mode == "cls" else "_tokens")
        pooling = {"word_embedding_dimension": SIZE, key: True, "include_prompt": False}
        whole = {"prompts": PROMPTS, "default_prompt_name": "query"}
        path = folder(dense(SIZE, 8), NORMALIZE, pooling=pooling, whole=whole)
        handler = serve_texts(path)
        for name in ("query", "passage", "empty"):
            wanted = reference(path, TEXTS, PROMPTS[name])
            assert_sentence_transformers_agrees(path, wanted, prompt_name=name)
            answers = ask(handler, TEXTS, truncate=True, prompt_name=name)
            np.testing.assert_allclose(answers, wanted, rtol=2e-6, atol=2e-5)
        differs = np.abs(reference(path, TEXTS, PROMPTS["query"]) - reference(path, TEXTS)).max()
        assert differs > 1e-3

    def test_names_without_any_text(self, folder: Make, serve_texts: Serve, ask: Ask) -> None:
        """As sentence-transformers saves a model without prompts."""
        path = folder(whole={"prompts": {"query": "", "document": ""}, "default_prompt_name": None})
        handler = serve_texts(path)
        assert ask(handler, ["x"], prompt_name="query") == ask(handler, ["x"])

    @pytest.mark.parametrize(
        ("whole", "expected"),
        [
            ({"prompts": PROMPTS, "default_prompt_name": "absent"}, "'absent', which is none of its prompts"),
            ({"prompts": ["query: "]}, "wanted: an object of texts by name"),
            ({"prompts": {"query": 5}}, "wanted: an object of texts by name"),
            ({"prompts": {"": "x"}}, "a prompt without a name"),
        ],
    )
    def test_prompts_that_are_refused(self, folder: Make, whole: Mapping[str, object], expected: str) -> None:
        with pytest.raises(CheckpointError, match=expected):
            text_checkpoints.read(str(folder(whole=whole)))

    def test_a_cross_encoders_prompt_goes_before_the_first_text(
        self, checkpoint: Checkpoint, serve_texts: Serve, ask: Ask, tmp_path: Path
    ) -> None:
        plain = checkpoint("distilbert", "AutoModelForSequenceClassification", id2label={0: "relevant"})
        path = Path(shutil.copytree(plain, tmp_path / "reranker"))
        write(
            path / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.Transformer"}]
        )
        whole = {"model_type": "CrossEncoder", "prompts": {"web": "search: "}, "default_prompt_name": "web"}
        write(path / "config_sentence_transformers.json", whole)
        handler = serve_texts(path)
        pair, prompted = {"text": "a b", "text_pair": "c"}, {"text": "search: a b", "text_pair": "c"}
        assert (
            ask(handler, [pair]) == ask(handler, [prompted], prompt_name="") != ask(handler, [pair], prompt_name="")
        )


class TestShorterEmbeddings:
    @pytest.mark.parametrize("normalize", [None, True, False])
    @pytest.mark.parametrize("size", [None, 8, 16, 32])
    def test_the_order_is_that_of_encode(
        self, folder: Make, serve_texts: Serve, ask: Ask, size: int | None, normalize: bool | None
    ) -> None:
        """Normalize modules run before the cut, normalize_embeddings after it."""
        path = folder(NORMALIZE, whole={"truncate_dim": 16})
        handler = serve_texts(path, dimensions=[8])
        whole = reference(path, TEXTS)
        wanted = whole[:, : size or 16]
        if normalize:
            wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
        if normalize is False:
            shutil.rmtree(path / "2_Normalize", ignore_errors=True)
            modules = json.loads((path / "modules.json").read_text(encoding="utf-8"))
            write(path / "modules.json", modules[:2])
            wanted = reference(path, TEXTS)[:, : size or 16]
        asked = {key: value for key, value in (("dimensions", size), ("normalize", normalize)) if value is not None}
        np.testing.assert_allclose(ask(handler, TEXTS, truncate=True, **asked), wanted, rtol=2e-6, atol=2e-5)
        theirs = {"truncate_dim": size, "normalize_embeddings": bool(normalize)}
        assert_sentence_transformers_agrees(path, wanted, **theirs)

    def test_sizes_that_files_and_the_command_name(self, folder: Make, serve_texts: Serve, ask: Ask) -> None:
        path = folder(dense(SIZE, 24), NORMALIZE)
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        write(path / "config.json", {**config, "matryoshka_dimensions": [8, 16, 24]})
        assert serve_texts(path).model.settings.dimensions == (8, 16, 24)
        handler = serve_texts(path, "--dimensions", "12", "4")
        assert handler.model.settings.dimensions == (4, 12)
        wanted = reference(path, TEXTS)[:, :12]
        np.testing.assert_allclose(ask(handler, TEXTS, truncate=True, dimensions=12), wanted, rtol=2e-6, atol=2e-5)
        assert handler.model.description["embedding"]["alsoDimensions"] == [4, 12]

    def test_more_than_there_are_are_all(self, folder: Make, serve_texts: Serve, ask: Ask) -> None:
        path = folder(whole={"truncate_dim": 999})
        assert np.asarray(ask(serve_texts(path), ["x"])).shape == (1, SIZE)


def test_a_transformer_in_a_subfolder(folder: Make, serve_texts: Serve, ask: Ask) -> None:
    """As sentence-transformers before 2.0 saved it."""
    path = folder(dense(SIZE, 8))
    inner = path / "0_Transformer"
    inner.mkdir()
    for file in [file for file in path.iterdir() if file.is_file() and file.name != "modules.json"]:
        file.rename(inner / file.name)
    write(inner / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False})
    modules = json.loads((path / "modules.json").read_text(encoding="utf-8"))
    modules[0]["path"] = inner.name
    write(path / "modules.json", modules)
    wanted = reference(path, [TEXTS[0], "x"])
    np.testing.assert_allclose(ask(serve_texts(path), [TEXTS[0], "x"]), wanted, rtol=2e-6, atol=2e-5)
