"""Classifiers of transformers that are no ResNets: read with their preprocessing and labels, or refused by name."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ConvNextConfig, ImageGPTConfig, PPLCNetConfig, RegNetConfig, ViTConfig, ViTModel

from archive import command_line, package, resolve
from archive.checkpoints import other_classifiers
from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.image_checkpoints import read
from archive.options import ImageClassifierOptions
from handlers.engines import networks
from handlers.images.preprocess import Preprocess

CLASSES = 5
NAMES = {index: f"kind {index}" for index in range(CLASSES)}
VIT: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CONFIGS: dict[str, Callable[[], Any]] = {
    "vit": lambda: ViTConfig(**VIT, image_size=32, patch_size=8, id2label=NAMES),
    "convnext": lambda: ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], id2label=NAMES),
    "regnet": lambda: RegNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], groups_width=8, id2label=NAMES
    ),
}
PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}, "crop_pct": 0.8},
    "regnet": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 56}},
}
HALF = (0.5, 0.5, 0.5)
PREPROCESS = {
    "vit": Preprocess(32, 32, "square", "bilinear", HALF, HALF),
    "convnext": Preprocess(64, 80, "shortest_edge", "bicubic", HALF, HALF),
    "regnet": Preprocess(56, 64, "shortest_edge", "bicubic", HALF, HALF),
}


def folder_of(name: str, path: Path) -> Path:
    torch.manual_seed(0)
    networks.build(CONFIGS[name]()).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]), encoding="utf-8")
    return path


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return folder_of("vit", tmp_path / "vit")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_weights_labels_and_preprocessing_are_the_checkpoints(tmp_path: Path, name: str) -> None:
    folder = folder_of(name, tmp_path)
    found = read(folder)
    assert found.layout == "huggingface"
    assert found.labels == tuple(NAMES.values())
    assert found.preprocess == PREPROCESS[name]
    assert (found.weights, found.source) == (folder / "model.safetensors", str(folder))
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    loaded = networks.load(folder, torch.float32)
    # Copies lie in memory as PyTorch aligns it; the file's own need not, and some CPUs sum those in another order.
    loaded.load_state_dict({name: value.clone() for name, value in loaded.state_dict().items()}, assign=True)
    torch.testing.assert_close(found.network()(images).logits, loaded(images).logits, rtol=0, atol=0)
    assert {value.dtype for value in found.state.values() if value.is_floating_point()} == {torch.float32}


def test_half_precision_and_what_a_head_does_not_need_are_taken(vit: Path) -> None:
    edit_weights(vit, lambda s: [s.update({name: value.half()}) for name, value in list(s.items())])
    edit_weights(vit, lambda s: s.update({"vit.pooler.dense.weight": torch.ones(16, 16)}))
    edit_json(vit / "config.json", dtype="float16")
    found = read(vit)
    assert {value.dtype for value in found.state.values()} == {torch.float32}
    assert next(found.network().parameters()).dtype == torch.float32


def test_weights_that_the_network_does_not_use_are_a_note(vit: Path) -> None:
    wanted = read(vit)
    assert wanted.notes == ()
    more = {
        "vit.pooler.dense.weight": torch.ones(16, 16),
        "decoder.mask_token": torch.ones(1),
        "table": torch.ones(1),
    }
    edit_weights(vit, lambda s: s.update(more))
    found = read(vit)
    assert found.notes == (
        "weights that ViTForImageClassification does not use were left out: decoder.mask_token, table, "
        "vit.pooler.dense.weight",
    )
    assert found.state.keys() == wanted.state.keys()
    assert job(vit).notes == found.notes


def test_wrappers_prefixes_are_stripped(vit: Path) -> None:
    wanted = read(vit).state
    edit_weights(vit, lambda s: [s.update({f"module._orig_mod.{n}": s.pop(n)}) for n in list(s)])
    found = read(vit).state
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}", "is not a readable safetensors file"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../other.safetensors"}}', "outside its folder"),
    ],
)
def test_refuses_damaged_weight_files(vit: Path, name: str, content: bytes, named: str) -> None:
    (vit / "model.safetensors").unlink()
    (vit / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=named):
        read(vit)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Sockets and imports of kernels that were tried."""
    tried: list[object] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        tried.append(arguments)
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", refuse)
    return tried


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attn_implementation": "an/kernel"}, "attn_implementation 'an/kernel'"),
        ({"_attn_implementation": "an/kernel"}, "_attn_implementation 'an/kernel'"),
        (
            {"attn_implementation": {"": "eager", "vision_config": "an/kernel:fn"}},
            "attn_implementation 'an/kernel:fn'",
        ),
        ({"attn_implementation": 3}, "attn_implementation 3"),
        ({"vision_config": {"attn_implementation": "an/kernel"}}, "attn_implementation 'an/kernel'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantization_config \(quant_method: gptq\)"),
        ({"quantization_config": "x"}, r"quantization_config \(quant_method: str\)"),
        ({"compression_config": {"a": 1}}, r"compression_config \(quant_method: unnamed\)"),
        ({"vision_config": {"quantization_config": {"quant_method": "awq"}}}, r"quantization_config .*awq"),
    ],
)
def test_refuses_settings_that_fetch_or_import(
    vit: Path, offline: list[object], changes: dict[str, Any], named: str
) -> None:
    edit_json(vit / "config.json", **changes)
    with pytest.raises(CheckpointError, match=named):
        read(vit)
    assert not offline


@torch.inference_mode()
def test_other_foreign_settings_are_left_out(vit: Path, tmp_path: Path, offline: list[object]) -> None:
    images = torch.randn(1, 3, 32, 32)
    wanted = read(vit).network()(images).logits
    other = tmp_path / "other.safetensors"
    save_file({"classifier.bias": torch.ones(CLASSES)}, other)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "an/other"}
    (vit / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    edit_json(
        vit / "config.json",
        attn_implementation="flash_attention_2",
        transformers_weights="../other.safetensors",
        return_dict=False,
        output_hidden_states=True,
        output_attentions=True,
        _commit_hash="0" * 40,
    )
    found = read(vit)
    found.network().save_pretrained(tmp_path / "served")
    config = (tmp_path / "served" / "config.json").read_text(encoding="utf-8")
    assert not [word for word in ("flash", "other.safetensors", "000") if word in config]
    assert not json.loads(config).get("output_hidden_states")
    for network in (found.network(), networks.load(tmp_path / "served", torch.float32)):
        torch.testing.assert_close(network(images).logits, wanted, rtol=0, atol=1e-6)
    assert not offline


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (
            lambda s: s.update({"head.bias": s.pop("classifier.bias")}),
            r"missing: classifier\.bias; unexpected: head\.bias",
        ),
        (lambda s: s.pop("classifier.bias"), r"not those of a ViTForImageClassification; missing: classifier\.bias"),
        (
            lambda s: s.update({name.replace(".0.", ".7."): value.clone() for name, value in s.items()}),
            r"of more layers than config\.json has: vit\..*\.7\.attention",
        ),
        (
            lambda s: s.update({"classifier.weight": s["classifier.weight"].to(torch.int8)}),
            r"not dense floating-point weights: classifier\.weight \(torch\.int8\)",
        ),
        (lambda s: s["classifier.bias"].fill_(torch.nan), r"not finite: classifier\.bias"),
        (
            lambda s: s.update({"classifier.bias": torch.ones(7)}),
            r"misshapen: classifier\.bias is \(7,\), wanted \(5,\)",
        ),
    ],
    ids=["renamed", "missing", "more layers", "quantized", "not finite", "misshapen"],
)
def test_refuses_weights_by_name(vit: Path, edit: Callable[[dict[str, torch.Tensor]], object], named: str) -> None:
    edit_weights(vit, edit)
    with pytest.raises(CheckpointError, match=named):
        read(vit)


def test_refuses_a_network_without_its_classifier(vit: Path) -> None:
    ViTModel(CONFIGS["vit"]()).save_pretrained(vit)
    with pytest.raises(CheckpointError, match=r"missing: classifier\.bias, classifier\.weight"):
        read(vit)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_channels": 1}, "num_channels 1, wanted 3"),
        ({"auto_map": {"AutoConfig": "mine.Config"}}, r"code of its own to run .*mine\.Config.*trust_remote_code"),
        ({"hidden_act": "nope"}, "transformers cannot load it as an image classifier .*nope"),
        ({"hidden_size": "wide"}, "transformers cannot load it as an image classifier"),
        ({"id2label": {"0": "a", "7": "b"}}, "classifier"),
    ],
)
def test_refuses_configs(vit: Path, changes: dict[str, Any], named: str) -> None:
    edit_json(vit / "config.json", **changes)
    with pytest.raises(CheckpointError, match=named):
        read(vit)


def test_refuses_a_folder_that_does_not_say_how_images_are_prepared(vit: Path) -> None:
    (vit / "preprocessor_config.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"no preprocessor_config\.json and no processor_config\.json .*type vit .*Wanted"
    ):
        read(vit)


def test_refuses_preprocessing_that_cannot_be_expressed(vit: Path) -> None:
    edit_json(vit / "preprocessor_config.json", image_processor_type="NoSuchImageProcessor")
    with pytest.raises(CheckpointError, match="image_processor_type 'NoSuchImageProcessor' is not known"):
        read(vit)


def job(folder: Path, *arguments: object) -> Any:
    command = ["image-classifier", "--name", "model", "--weights", folder, *arguments]
    return resolve.image_model(cast("ImageClassifierOptions", command_line.parse(list(map(str, command)))))


def test_a_network_of_one_size_gets_images_of_that_size(vit: Path, tmp_path: Path) -> None:
    assert job(vit).settings.preprocess.size == 32
    with pytest.raises(CheckpointError, match=r"does not take images of 48 x 48 pixels.*image_size 32"):
        job(vit, "--size", 48)
    edit_json(vit / "preprocessor_config.json", size={"height": 64, "width": 64})
    with pytest.raises(CheckpointError, match=r"ViTForImageClassification does not take images of 64 x 64"):
        job(vit)
    assert job(vit, "--size", 32).settings.preprocess.size == 32
    assert job(folder_of("convnext", tmp_path / "any size"), "--size", 96).settings.preprocess.size == 96


def test_refuses_the_engine_of_resnets(vit: Path) -> None:
    with pytest.raises(
        package.PackagingError,
        match=r"cudnn runs this on no machine: it runs ResNets, .* and the network is of type vit; --engine auto",
    ):
        package._refuse_impossible_engine(job(vit, "--engine", "cudnn"), vit)
    package._refuse_impossible_engine(job(vit, "--engine", "tensorrt"), vit)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (
            PPLCNetConfig(scale=0.25, id2label=NAMES),
            "gives BaseModelOutputWithNoAttention for one image, wanted logits",
        ),
        (
            ImageGPTConfig(n_embd=16, n_layer=1, n_head=2, n_positions=16, id2label=NAMES),
            "does not take images of 32 x",
        ),
    ],
)
def test_refuses_networks_that_take_or_give_something_else(tmp_path: Path, config: Any, named: str) -> None:
    networks.build(config).save_pretrained(tmp_path)
    write = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(write), encoding="utf-8")
    with pytest.raises(CheckpointError, match=named):
        job(tmp_path)


def test_refuses_a_network_that_gives_something_else(vit: Path) -> None:
    network = networks.load(vit, torch.float32)
    network.config.id2label = {0: "a"}
    with pytest.raises(CheckpointError, match=r"gives \(1, 5\) for one image, wanted logits \(1, 1\)"):
        other_classifiers.refuse_size(network, 32, 32)


def test_timms_other_networks_go_to_transformers_wrapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_json = {"architecture": "vit_tiny_patch16_224", "num_classes": CLASSES, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config_json), encoding="utf-8")
    save_file({"head.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    asked: list[Path] = []

    def load(folder: Path, served: dict[str, Any]) -> Any:
        assert (served["model_type"], served["architecture"]) == ("timm_wrapper", "vit_tiny_patch16_224")
        asked.append(folder)
        raise CheckpointError("asked")

    monkeypatch.setattr(other_classifiers, "_load", load)
    monkeypatch.setattr(networks, "timm_problem", lambda: None)
    with pytest.raises(CheckpointError, match="asked"):
        read(tmp_path)
    assert asked == [tmp_path]
    monkeypatch.setattr(networks, "timm_problem", lambda: "timm cannot be imported here")
    with pytest.raises(CheckpointError, match=r"'vit_tiny_patch16_224' is no plain ResNet.*timm cannot be imported"):
        read(tmp_path)
