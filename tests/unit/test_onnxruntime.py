"""ONNX Runtime gives on a CPU what PyTorch gives, for every size of batch and text; what it does not run it says."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from handlers import engines
from handlers.encoder.packing import TokenBatch
from handlers.encoder.swap import fused_encoder, swap_encoder
from handlers.engines import EngineSpec, networks, onnx_networks, onnxruntime
from handlers.engines.folding import fold_resnet
from handlers.engines.onnx_graph import FLOAT, Graph
from handlers.selection import candidates, choosing
from handlers.settings import TEXT_TASKS

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
HEADS = {
    "embeddings": "Model",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "fill-mask": "ForMaskedLM",
    "sparse-embeddings": "ForMaskedLM",
}
RESNET = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2], "num_labels": 5}
ONE_OF_EACH = [1, 2, 3, 5, 8, 13, 21, 34, 55, 60]


def text_spec(folder: Path, task: str = "embeddings", **changes: Any) -> EngineSpec:
    return dataclasses.replace(EngineSpec("text-encoder", folder, CPU, "fp32", task=task, max_tokens=64), **changes)


def image_spec(folder: Path, **changes: Any) -> EngineSpec:
    return dataclasses.replace(EngineSpec("image-classifier", folder, CPU, "fp32", image_size=32), **changes)


def save_text_model(folder: Path, family: str = "Bert", task: str = "embeddings", **config: Any) -> Path:
    torch.manual_seed(0)
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64} if family == "DistilBert" else TINY
    of = getattr(transformers, f"{family}Config")
    settings = of(**sizes, vocab_size=100, max_position_embeddings=66, initializer_range=0.3, **config)
    getattr(transformers, f"{family}{HEADS[task]}")(settings).save_pretrained(folder)
    return folder


def save_resnet(folder: Path, **config: Any) -> Path:
    """With BatchNorm that does something."""
    torch.manual_seed(0)
    network = networks.build(transformers.ResNetConfig(**{**RESNET, **config}))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                assert values is not None
                values.uniform_(0.5, 2)
            for values in (module.bias.data, module.running_mean):
                assert values is not None
                values.normal_(0, 0.2)
    network.save_pretrained(folder)
    return folder


def batch_of(lengths: Sequence[int], selected: Sequence[int] | None = None) -> TokenBatch:
    drawn = torch.randint(5, 100, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    ids = [part.tolist() for part in drawn.split(list(lengths))]
    return TokenBatch.pack(ids, [[place % 2 for place in range(len(row))] for row in ids], CPU, selected)


def assert_same(spec: EngineSpec, inputs: Any) -> None:
    found, wanted = (engines.load(name, spec).run(inputs) for name in ("onnxruntime", "torch_eager"))
    assert found.shape == wanted.shape
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("task", TEXT_TASKS)
@pytest.mark.parametrize("lengths", [[1], [64], [7] * 3, ONE_OF_EACH, [1, 64], [9] * 64], ids=str)
def test_texts(tmp_path: Path, task: str, lengths: list[int]) -> None:
    selected = [0, sum(lengths) - 1] if task == "fill-mask" else None
    assert_same(text_spec(save_text_model(tmp_path, task=task), task), batch_of(lengths, selected))


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "Electra"])
def test_families(tmp_path: Path, family: str) -> None:
    config: dict[str, Any] = {"embedding_size": 16} if family == "Electra" else {}
    assert_same(text_spec(save_text_model(tmp_path, family, **config)), batch_of(ONE_OF_EACH))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_activations(tmp_path: Path, activation: str) -> None:
    assert_same(text_spec(save_text_model(tmp_path, hidden_act=activation)), batch_of([3, 4]))


def test_a_batch_of_more_tokens_than_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "TOKENS", 20)
    spec = text_spec(save_text_model(tmp_path))
    for lengths in ([10] * 5, [21, 21], ONE_OF_EACH):
        assert_same(spec, batch_of(lengths))


@given(st.lists(st.integers(1, 600), min_size=1, max_size=80))
def test_texts_of_like_length_run_together(lengths: list[int]) -> None:
    groups = onnxruntime.group_by_length(lengths)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    for group in groups:
        its_lengths = [lengths[place] for place in group]
        tokens = len(group) * max(its_lengths)
        assert tokens - sum(its_lengths) <= onnxruntime.PADDING
        assert len(group) == 1 or tokens <= onnxruntime.TOKENS


@pytest.mark.parametrize(
    "config",
    [
        {"layer_type": "basic"},
        {"layer_type": "bottleneck"},
        {"layer_type": "bottleneck", "downsample_in_bottleneck": True},
        {"layer_type": "bottleneck", "hidden_sizes": [64, 128], "groups": 4, "width_per_group": 8},
    ],
    ids=["basic", "bottleneck", "stride first", "resnext"],
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_resnets(tmp_path: Path, config: dict[str, Any], layout: torch.memory_format) -> None:
    spec = image_spec(save_resnet(tmp_path, **config))
    for count in (1, 3, 64):
        assert_same(spec, torch.randn(count, 3, 32, 32).contiguous(memory_format=layout))


def test_more_images_than_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "PIXELS", 4 * 32 * 32)
    assert_same(image_spec(save_resnet(tmp_path)), torch.randn(9, 3, 32, 32))


def test_the_files_are_onnx(tmp_path: Path) -> None:
    """As the package onnx reads and checks them; onnxruntime's own operators are unknown to it."""
    folded = fold_resnet(networks.load(save_resnet(tmp_path / "r"), torch.float32), CPU, torch.float32)
    graph, content = onnx_networks.resnet(folded, 32)
    model = onnx.load_from_string(content)
    assert [weight.name for weight in model.graph.initializer] == list(graph.weights)
    for weight in model.graph.initializer:  # the checker looks for files with the values
        weight.data_location = onnx.TensorProto.DEFAULT
        weight.raw_data = graph.weights[weight.name].tobytes()
    onnx.checker.check_model(model, full_check=True)

    network = transformers.AutoModel.from_pretrained(save_text_model(tmp_path / "t")).eval()
    _, content = onnx_networks.encoder(fused_encoder(swap_encoder(network)))
    model = onnx.load_from_string(content)
    assert {node.domain for node in model.graph.node} == {"", "com.microsoft"}
    assert [one.name for one in model.graph.input] == ["hidden", "lengths"]


@given(st.lists(st.integers(0, 2**40), max_size=5), st.floats(width=32, allow_nan=False))
def test_attributes_are_read_as_they_were_written(whole: list[int], broken: float) -> None:
    graph = Graph()
    output = graph.add("Some", "in", whole=whole, broken=broken, one=300)
    model = onnx.load_from_string(graph.model([("in", FLOAT, ("N", 128))], (output, ("N",))))
    found = {one.name: onnx.helper.get_attribute_value(one) for one in model.graph.node[0].attribute if one.type}
    assert list(found["whole"]) == whole
    assert (found["broken"], found["one"]) == (broken, 300)
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    assert (sizes[0].dim_param, sizes[1].dim_value) == ("N", 128)


def test_it_takes_pytorchs_count_of_threads_and_lets_none_spin(tmp_path: Path) -> None:
    graph = Graph()
    content = graph.model([("in", FLOAT, ("N",))], (graph.add("Relu", "in"), ("N",)))
    options = onnxruntime.session(graph, content).get_session_options()
    assert options.intra_op_num_threads == torch.get_num_threads()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    engine = engines.load("onnxruntime", image_spec(save_resnet(tmp_path)))
    assert engine.details["threads"] == torch.get_num_threads()


def test_what_it_does_not_run_it_says(tmp_path: Path) -> None:
    bert, resnet = save_text_model(tmp_path / "bert"), save_resnet(tmp_path / "resnet")
    silu, vit = save_text_model(tmp_path / "silu", hidden_act="silu"), tmp_path / "vit"
    small = transformers.ViTConfig(image_size=32, patch_size=16, **TINY)
    transformers.ViTForImageClassification(small).save_pretrained(vit)  # type: ignore[no-untyped-call, unused-ignore]
    said = {
        "it runs CPUs": image_spec(resnet, device=torch.device("cuda", 0)),
        "it runs fp32, and the precision is bf16": text_spec(bert, precision="bf16"),
        "the network is of type vit": image_spec(vit),
        "its activation is silu": text_spec(silu),
        "at most 2048 tokens, and the model's maximum is 4096": text_spec(bert, max_tokens=4096),
        "has no config.json": text_spec(tmp_path),
        "no encoder that can be fused": text_spec(vit),
        "the activation is gelu": image_spec(save_resnet(tmp_path / "gelu", hidden_act="gelu")),
    }
    for why, spec in said.items():
        assert why.replace("it runs CPUs", "it runs on CPUs") in str(engines.get("onnxruntime").why_not_here(spec))
    assert engines.get("onnxruntime").why_not_here(text_spec(bert)) is None
    assert engines.get("onnxruntime").why_not_here(image_spec(resnet)) is None
    with pytest.raises(ValueError, match="engine onnxruntime cannot run here: it runs on CPUs"):
        candidates.choose("onnxruntime", image_spec(resnet, device=torch.device("cuda", 0)))


def test_pre_norm_is_not_its_own() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, norm_first=True, activation="gelu", batch_first=True)
    network = swap_encoder(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval())
    assert "pre-norm" in str(onnx_networks.why_no_encoder(fused_encoder(network).config))


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name != "onnxruntime" and find(name, *rest))


@pytest.mark.usefixtures("not_installed")
def test_without_the_package_auto_takes_the_next_and_says_so(
    tmp_path: Path, minilm_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(minilm_folder / "tokenizer.json", save_text_model(tmp_path / "bert") / "tokenizer.json")
    spec = image_spec(save_resnet(tmp_path / "resnet"), plan_cache=tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        name, _, engine = choosing.load_best("auto", [spec])
    assert name == "torch_eager"
    left_out: Any = engine.details["leftOut"]
    assert left_out == {"onnxruntime": onnxruntime.MISSING}
    assert f"engine onnxruntime left out: {onnxruntime.MISSING}" in caplog.text
    with pytest.raises(ValueError, match=r"the package onnxruntime, .* is not installed: scripts/setup serve cpu"):
        choosing.load_best("onnxruntime", [spec])


@pytest.mark.usefixtures("not_installed")
def test_a_gpu_does_not_miss_it(tmp_path: Path) -> None:
    spec = image_spec(save_resnet(tmp_path), device=torch.device("cuda", 0), precision="fp16")
    assert "onnxruntime" not in choosing._left_out(spec)


def test_a_handler_serves_with_it(
    load_handler: Callable[..., Any], ask: Callable[..., Any], digits_folder: Path, minilm_folder: Path
) -> None:
    from handlers.image_classifier import ImageClassifier
    from handlers.text_encoder import TextEncoder

    sample = (Path(__file__).parents[2] / "archive/digits/samples/seven.png").read_bytes()
    preprocess = {"size": 32, "resize": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    digits = load_handler(ImageClassifier, digits_folder, engine="onnxruntime", preprocess=preprocess)
    assert ask(digits, [{"body": sample}])[0][1][0]["label"] == "7"
    settings = {"task": "embeddings", "maxTokens": 128, "lowerCase": True}
    both = [
        ask(
            load_handler(TextEncoder, minilm_folder, engine=engine, **settings),
            [{"body": b"one"}, {"body": b"a b c"}],
        )
        for engine in ("onnxruntime", "torch_eager")
    ]
    for (status, found), (_, wanted) in zip(*both, strict=True):
        assert status == 200
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-4, atol=1e-4)
