from __future__ import annotations

import argparse
import copy
import hashlib
import json
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.image_checkpoints import ImageCheckpoint, read
from handlers.engines import networks
from handlers.images.preprocess import Preprocess

Tensors = dict[str, torch.Tensor]
LABELS = Path(__file__).parents[2] / "archive" / "resnet101" / "labels.txt"
CLASSES = 5
TIMM_CONFIG: dict[str, Any] = {
    "architecture": "resnet50",
    "num_classes": CLASSES,
    "global_pool": "avg",
    "pretrained_cfg": {"tag": "a1_in1k", "input_size": [3, 64, 64], "crop_pct": 0.95, "num_classes": CLASSES},
}
# The end record of a zip archive whose directory of files is not where it says.
DAMAGED_ZIP = b"PK\5\6" + b"\0" * 4 + b"\1\0\1\0" + b"\x2e\0\0\0" + b"\0" * 6
PREPROCESSOR = {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875}


# A reference of its own: torchvision's names, and its v1.5 bottleneck with the stride in the 3x3 convolution.
class Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool, groups: int, base: int) -> None:
        super().__init__()
        outputs = width * 4 if bottleneck else width
        kernels = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        widths = [inputs, *[int(width * (base / 64)) * groups] * (len(kernels) - 1), outputs]
        for index, (kernel, step) in enumerate(kernels, start=1):
            before, after = widths[index - 1 : index + 1]
            inner = groups if kernel == 3 else 1
            convolution = nn.Conv2d(before, after, kernel, step, kernel // 2, groups=inner, bias=False)
            self.add_module(f"conv{index}", convolution)
            self.add_module(f"bn{index}", nn.BatchNorm2d(after))
        self.count = len(kernels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for index in range(1, self.count + 1):
            y = self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(y))
            y = y.relu() if index < self.count else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Reference(nn.Module):
    def __init__(self, depths: list[int], width: int, bottleneck: bool, groups: int = 1, base: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        for stage, depth in enumerate(depths):
            inner = width << stage
            blocks = []
            for index in range(depth):
                blocks.append(Block(channels, inner, 2 if stage and not index else 1, bottleneck, groups, base))
                channels = inner * 4 if bottleneck else inner
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def randomised(model: nn.Module) -> nn.Module:
    """In place: statistics and scales as after training, not the 0 and 1 they start from."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.0),
                (module.bias.data, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                assert tensor is not None
                tensor.uniform_(low, high, generator=generator)
    return model.train(False)


def reference(depths: list[int] | None = None, width: int = 4, bottleneck: bool = True, **breadth: int) -> nn.Module:
    torch.manual_seed(3)
    return randomised(Reference(depths or [1, 2, 1, 1], width, bottleneck, **breadth))


def tiny_huggingface(**settings: Any) -> ResNetForImageClassification:
    torch.manual_seed(3)
    tiny: dict[str, Any] = {
        "embedding_size": 8,
        "hidden_sizes": [16, 32],
        "depths": [1, 2],
        "id2label": {index: f"kind {index}" for index in range(CLASSES)},
        "label2id": {f"kind {index}": index for index in range(CLASSES)},
        **settings,
    }
    model = ResNetForImageClassification(ResNetConfig(**tiny))
    randomised(model)
    return model


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def served_logits(checkpoint: ImageCheckpoint) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = checkpoint.network()(images()).logits
    return logits


def assert_serves(checkpoint: ImageCheckpoint, model: nn.Module) -> None:
    with torch.no_grad():
        wanted = model(images())
    wanted = wanted if isinstance(wanted, torch.Tensor) else wanted.logits
    torch.testing.assert_close(served_logits(checkpoint), wanted, atol=1e-5, rtol=1e-5)


def saved(tensors: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def timm_folder(folder: Path, state: Tensors, **config: Any) -> Path:
    saved(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**TIMM_CONFIG, **config}))
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("depths", "bottleneck"),
    [
        ([2, 2, 2, 2], False),
        ([3, 4, 6, 3], False),
        ([3, 4, 6, 3], True),
        ([3, 4, 23, 3], True),
        ([3, 8, 36, 3], True),
    ],
    ids=["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"],
)
def test_torchvision_names_give_the_same_logits(
    tmp_path: Path, depths: list[int], bottleneck: bool, suffix: str
) -> None:
    model = reference(depths, bottleneck=bottleneck)
    path = saved(model.state_dict(), tmp_path / f"resnet{suffix}")
    found = read(path)
    assert_serves(found, model)
    assert (found.layout, found.preprocess, found.labels) == ("torchvision", None, None)
    assert found.config.depths == depths
    assert found.config.layer_type == ("bottleneck" if bottleneck else "basic")
    assert found.config.num_labels == CLASSES
    assert ("layer1.0.downsample.0.weight" in model.state_dict()) == bottleneck
    assert (found.source, found.weights) == (str(path), path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


# Of the published shapes, the first four in a quarter of their width; Wide ResNet with groups is nobody's yet.
BROAD: dict[str, tuple[list[int], int, dict[str, Any]]] = {
    "resnext50_32x4d": ([3, 4, 6, 3], 16, {"groups": 32, "base": 4}),
    "resnext101_64x4d": ([3, 4, 23, 3], 16, {"groups": 64, "base": 4}),
    "resnext101_32x8d": ([3, 4, 23, 3], 16, {"groups": 32, "base": 8}),
    "wide_resnet50_2": ([3, 4, 6, 3], 16, {"groups": 1, "base": 128}),
    "wide and grouped": ([1, 2, 1, 1], 8, {"groups": 4, "base": 32}),
}


@pytest.mark.parametrize("layout", ["torchvision", "timm", "huggingface"])
@pytest.mark.parametrize("name", BROAD)
def test_resnext_and_wide_resnet_give_the_same_logits(tmp_path: Path, name: str, layout: str) -> None:
    depths, width, breadth = BROAD[name]
    model = reference(depths, width, **breadth)
    path = saved(dict(model.state_dict()), tmp_path / "r.safetensors")
    if layout == "timm":
        architecture = "resnext50_32x4d" if " " in name else name
        (tmp_path / "timm").mkdir()
        path = timm_folder(tmp_path / "timm", dict(model.state_dict()), architecture=f"{architecture}.fb_swsl")
    elif layout == "huggingface":
        path = tmp_path / "served"
        read(tmp_path / "r.safetensors").network().save_pretrained(path)
    found = read(path)
    assert_serves(found, model)
    assert found.layout == layout
    assert (found.config.groups, found.config.width_per_group) == (breadth["groups"], breadth["base"])
    assert {"layer_type": "bottleneck", "depths": depths}.items() <= found.config.to_dict().items()


def test_a_plain_resnets_config_names_neither_groups_nor_widths(tmp_path: Path) -> None:
    found = read(saved(reference().state_dict(), tmp_path / "r.pth"))
    assert not {"groups", "width_per_group"} & found.config.to_dict().keys()
    tiny_huggingface(groups=1, width_per_group=64).save_pretrained(tmp_path / "folder")
    assert not {"groups", "width_per_group"} & read(tmp_path / "folder").config.to_dict().keys()


def test_state_is_float32_contiguous_and_its_own(tmp_path: Path) -> None:
    state = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in reference().state_dict().items()
    }
    path = saved(state, tmp_path / "r.pth")
    found = read(path)
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in found.state.values())
    assert not any("num_batches_tracked" in name for name in found.state)
    stem = found.state["resnet.embedder.embedder.convolution.weight"].clone()
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(found.state["resnet.embedder.embedder.convolution.weight"], stem)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = reference().to(dtype)
    found = read(saved(model.state_dict(), tmp_path / "r.safetensors"))
    assert {tensor.dtype for tensor in found.state.values()} == {torch.float32}
    assert_serves(found, model.float())


def test_files_of_older_releases(tmp_path: Path) -> None:
    """torchvision's oldest files are not zip archives, and lack the counters."""
    model = reference()
    state = OrderedDict((k, v) for k, v in model.state_dict().items() if "num_batches" not in k)
    torch.save(state, tmp_path / "r.pth", _use_new_zipfile_serialization=False)
    assert_serves(read(tmp_path / "r.pth"), model)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "arch": "resnet50"},
        lambda s: {"model": s, "optimizer": {"state": {}}},
        lambda s: {"state_dict_ema": s, "state_dict": {}},
        lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
        lambda s: {f"timm_model.{k}": v for k, v in s.items()},
        lambda s: {
            "model_ema": {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}},
            "model": {},
        },
    ],
)
def test_unwraps_containers_and_prefixes(tmp_path: Path, wrap: Callable[[Tensors], Any]) -> None:
    model = reference()
    assert_serves(read(saved(wrap(dict(model.state_dict())), tmp_path / "r.pt")), model)


def test_timm_folder(tmp_path: Path) -> None:
    model = reference()
    names = [f"kind {index}" for index in range(CLASSES)]
    found = read(timm_folder(tmp_path, dict(model.state_dict()), label_names=names))
    assert_serves(found, model)
    assert found.layout == "timm"
    assert found.preprocess == Preprocess(64, 67, "shortest_edge", "bicubic", crop_rounding="even")
    assert found.labels == tuple(names)
    assert found.config.id2label == dict(enumerate(names))


def test_file_beside_a_timm_config_is_timms(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path, dict(reference().state_dict()))
    assert read(folder / "model.safetensors").layout == "timm"
    assert read(folder / "model.safetensors").labels is None


def test_older_timm_config_without_pretrained_cfg(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path, dict(reference().state_dict()))
    config = {"architecture": "tv_resnet50", "input_size": [3, 32, 32], "crop_pct": 0.5, "labels": [*"abcde"]}
    (folder / "config.json").write_text(json.dumps(config))
    found = read(folder)
    assert found.preprocess == Preprocess(32, 64, "shortest_edge", "bicubic", crop_rounding="even")
    assert found.labels == (*"abcde",)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"downsample_in_bottleneck": True, "downsample_in_first_stage": True},
        {"layer_type": "basic", "hidden_act": "gelu", "problem_type": "multi_label_classification"},
    ],
)
def test_huggingface_folder(tmp_path: Path, settings: dict[str, Any], shards: bool) -> None:
    model = tiny_huggingface(**settings)
    model.save_pretrained(tmp_path, max_shard_size="8KB" if shards else "1GB")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    found = read(str(tmp_path))
    assert_serves(found, model)
    assert found.layout == "huggingface"
    assert found.preprocess is not None
    assert (found.preprocess.size, found.preprocess.resize) == (224, 256)
    assert found.labels == tuple(f"kind {index}" for index in range(CLASSES))
    assert found.config.id2label == dict(enumerate(found.labels))
    assert found.weights.name == ("model.safetensors.index.json" if shards else "model.safetensors")
    assert {name: getattr(found.config, name) for name in settings} == settings


def test_sha256_of_shards_covers_the_weights(tmp_path: Path) -> None:
    tiny_huggingface().save_pretrained(tmp_path, max_shard_size="8KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    files = [tmp_path / "model.safetensors.index.json", *shards]
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    assert read(tmp_path).sha256 == wanted


def test_huggingface_pickle_stale_settings_and_placeholder_labels(tmp_path: Path) -> None:
    model = tiny_huggingface(id2label={i: f"LABEL_{i}" for i in range(CLASSES)}, label2id=None)
    model.config.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", torch_dtype="float16", some_old_setting=1)
    saved(model.state_dict(), tmp_path / "pytorch_model.bin")
    found = read(tmp_path)
    assert_serves(found, model)
    assert found.labels is None
    assert found.preprocess is None
    assert found.config.num_labels == CLASSES
    assert not hasattr(found.config, "some_old_setting")
    assert found.config.dtype is None


def test_huggingface_file_alone_and_beside_its_config(tmp_path: Path) -> None:
    model = tiny_huggingface()
    path = saved(dict(model.state_dict()), tmp_path / "weights.safetensors")
    alone = read(path)
    assert_serves(alone, model)
    assert (alone.layout, alone.labels, alone.config.num_labels) == ("huggingface", None, CLASSES)
    model.config.save_pretrained(tmp_path)
    assert read(path).labels == tuple(f"kind {index}" for index in range(CLASSES))


def test_served_folder_is_read_back(tmp_path: Path) -> None:
    """What the config and state make can be saved as a Hugging Face folder and read again."""
    model = reference()
    first = read(saved(model.state_dict(), tmp_path / "r.pth"))
    first.config.save_pretrained(tmp_path / "again")
    save_file(first.state, tmp_path / "again" / "model.safetensors")
    assert_serves(read(tmp_path / "again"), model)


def test_weights_that_a_huggingface_resnet_does_not_use_are_a_note(tmp_path: Path) -> None:
    model = tiny_huggingface()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    saved({**state, "resnet.projection.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    found = read(tmp_path)
    assert_serves(found, model)
    note = "weights that ResNetForImageClassification does not use were left out: resnet.projection.weight"
    assert found.notes == (note,)
    more = {name.replace("stages.1.", "stages.2."): value.clone() for name, value in state.items()}
    saved({**state, **more}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected: resnet\.encoder\.stages\.2\."):
        read(tmp_path)


def test_a_huggingface_resnet_of_quantized_weights_or_hub_kernels_is_refused(tmp_path: Path) -> None:
    tiny_huggingface().save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", quantization_config={"quant_method": "hqq"})
    with pytest.raises(CheckpointError, match=r"quantization_config \(quant_method: hqq\)"):
        read(tmp_path)
    edit_json(tmp_path / "config.json", quantization_config=None, attn_implementation="an/kernel")
    with pytest.raises(CheckpointError, match="attn_implementation 'an/kernel'"):
        read(tmp_path)


def widened(state: Tensors) -> None:
    for name in ("conv1.weight", "conv2.weight"):
        tensor = state[f"layer1.0.{name}"]
        state[f"layer1.0.{name}"] = torch.zeros(8, tensor.shape[1] if "1" in name else 8, *tensor.shape[2:])


REFUSED: list[tuple[str, Callable[[Tensors], Any], str]] = [
    ("missing", lambda s: s.pop("layer2.1.bn2.bias"), r"missing: layer2\.1\.bn2\.bias \(8,\)"),
    (
        "missing convolution",
        lambda s: s.pop("layer2.0.conv3.weight"),
        r"missing: layer2\.0\.conv3\.weight \(32, 8, 1, 1\)",
    ),
    ("missing stem", lambda s: s.pop("conv1.weight"), r"missing: conv1\.weight"),
    ("unexpected", lambda s: s.update({"extra.weight": torch.ones(2)}), r"unexpected: extra\.weight \(2,\)"),
    ("gap", lambda s: [s.pop(n) for n in list(s) if n.startswith("layer2.0.")], r"missing: .*layer2\.0\.conv1"),
    (
        "misshapen",
        lambda s: s.update({"bn1.weight": torch.ones(9)}),
        r"misshapen: bn1\.weight is \(9,\), wanted \(4,\)",
    ),
    (
        "kernel",
        lambda s: s.update({"conv1.weight": torch.ones(4, 3, 3, 3)}),
        r"conv1\.weight is \(4, 3, 3, 3\), wanted \(4, 3, 7, 7\)",
    ),
    ("no dimensions", lambda s: s.update({"conv1.weight": torch.tensor(1.0)}), r"conv1\.weight"),
    ("no head", lambda s: (s.pop("fc.weight"), s.pop("fc.bias")), r"fc\.weight is missing: a feature extractor"),
    ("sequence head", lambda s: s.update({"fc.1.weight": s.pop("fc.weight")}), r"Dropout.*fc\.1\.weight"),
    ("grey", lambda s: s.update({"conv1.weight": torch.ones(4, 1, 7, 7)}), r"conv1\.weight .* 1 channels"),
    (
        "ResNeXt",
        lambda s: s.update({"layer1.0.conv2.weight": torch.ones(4, 1, 3, 3)}),
        r"misshapen: layer2\.0\.conv2\.weight is \(8, 8, 3, 3\), wanted \(8, 2, 3, 3\)",
    ),
    ("wide", widened, r"misshapen: .*layer2\.0\.conv1\.weight is \(8, 16, 1, 1\), wanted \(16, 16, 1, 1\)"),
    (
        "no whole width",
        lambda s: s.update({"layer1.0.conv2.weight": torch.ones(5, 4, 3, 3)}),
        r"misshapen: .*layer1\.0\.conv2\.weight is \(5, 4, 3, 3\), wanted",
    ),
    ("no width", lambda s: s.update({"layer1.0.conv2.weight": torch.ones(0, 0, 3, 3)}), r"make a bottleneck 0 wide"),
    ("deep stem", lambda s: s.update({"conv1.0.weight": s.pop("conv1.weight")}), r"deep stem.*conv1\.0\.weight"),
    (
        "deep stem's way out",
        lambda s: s.update({"conv1.0.weight": s.pop("conv1.weight")}),
        r"if timm and torchvision are installed, its folder is served .*timm\.models\.save_for_hf",
    ),
    ("SE", lambda s: s.update({"layer1.0.se.fc1.weight": torch.ones(1)}), r"attention.*layer1\.0\.se\.fc1"),
    ("blur", lambda s: s.update({"layer2.0.conv2.1.filt": torch.ones(1)}), r"anti-aliased.*conv2\.1\.filt"),
    (
        "average pooling",
        lambda s: s.update({"layer1.0.downsample.1.weight": s["layer1.0.downsample.0.weight"]}),
        r"layer1\.0\.downsample\.1\.weight .* average pooling \(ResNet-D\)",
    ),
    (
        "GroupNorm",
        lambda s: [s.pop(n) for n in list(s) if "running" in n],
        r"no running_mean anywhere: GroupNorm",
    ),
    (
        "not a number",
        lambda s: s["layer1.0.bn1.weight"][0].fill_(float("nan")),
        r"not finite .*: layer1\.0\.bn1\.weight\.",
    ),
    ("variance", lambda s: s["bn1.running_var"][0].fill_(-1.0), r"negative: bn1\.running_var"),
    (
        "integers",
        lambda s: s.update({"fc.weight": s["fc.weight"].to(torch.int8)}),
        r"not dense floating-point weights: fc\.weight \(torch\.int8\)",
    ),
    (
        "8-bit floats",
        lambda s: s.update({"fc.weight": s["fc.weight"].to(torch.float8_e4m3fn)}),
        r"fc\.weight \(torch\.float8_e4m3fn\)",
    ),
    ("quantised", lambda s: s.update({"conv1.zero_point": torch.tensor(0)}), r"quantised model.*conv1\.zero_point"),
    (
        "not tensors",
        lambda s: cast("dict[str, Any]", s).update({"fc._packed_params": (1, 2)}),
        r"not tensors: fc\._packed_params \(tuple\)",
    ),
]


@pytest.mark.parametrize(("edit", "named"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refuses_by_the_checkpoints_own_names(tmp_path: Path, edit: Callable[[Tensors], Any], named: str) -> None:
    state = copy.deepcopy(dict(reference().state_dict()))
    edit(state)
    path = saved(state, tmp_path / "r.pth")
    with pytest.raises(CheckpointError, match=named) as refusal:
        read(path)
    assert str(refusal.value).startswith(str(path))


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["stages.0.blocks.0.conv1.weight", "stem.conv.weight", "head.fc.weight"], "pre-activation ResNet"),
        (["root.conv.weight", "block1.unit01.gn1.weight"], "pre-activation ResNet"),
        (["embedder.embedder.convolution.weight"], "feature extractor"),
        (["patch_embed.proj.weight", "head.weight"], r"not the weights of a ResNet.*patch_embed.*save_pretrained"),
        (["resnet.embedder.embedder.convolution.weight", "resnet.x.running_mean", "classifier.1.weight"], "no resid"),
    ],
)
def test_refuses_other_networks(tmp_path: Path, names: list[str], named: str) -> None:
    path = saved({name: torch.ones(1, 3, 1, 1) for name in names}, tmp_path / "r.pth")
    with pytest.raises(CheckpointError, match=named):
        read(path)


def test_long_lists_are_cut_with_their_count(tmp_path: Path) -> None:
    state = dict(reference().state_dict())
    state.update({f"extra.{index}": torch.ones(1) for index in range(50)})
    with pytest.raises(CheckpointError, match=r"extra\.19 \(1,\), \.\.\. \(50 in all\)") as refusal:
        read(saved(state, tmp_path / "r.pth"))
    assert "extra.20" not in str(refusal.value)


def test_message_mentions_the_prefix_that_was_stripped(tmp_path: Path) -> None:
    state = {f"module.{k}": v for k, v in reference().state_dict().items() if k != "fc.bias"}
    with pytest.raises(CheckpointError, match=r"without their prefix 'module\.'.*missing: fc\.bias"):
        read(saved(state, tmp_path / "r.pth"))


def test_float64_beyond_float32_is_not_finite(tmp_path: Path) -> None:
    state = reference().double().state_dict()
    state["fc.bias"][0] = 1e300
    with pytest.raises(CheckpointError, match=r"not finite \(in float32\): fc\.bias"):
        read(saved(state, tmp_path / "r.pth"))


class Trap:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, zipped: bool) -> None:
    trap = tmp_path / "executed"
    content = {**reference().state_dict(), "fc.bias": Trap(trap)}
    torch.save(content, tmp_path / "r.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"could run any code, so it was not loaded"):
        read(tmp_path / "r.pth")
    assert not trap.exists()
    torch.load(tmp_path / "r.pth", weights_only=False)
    assert trap.exists(), "the trap works where pickles are trusted"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (lambda: reference(), r"would call .*test_image_checkpoints\.Block.*m\.state_dict\(\)"),
        (lambda: {"model": {}, "args": argparse.Namespace(lr=1)}, r'argparse\.Namespace.*m\["model"\]'),
        (lambda: [torch.ones(1)], "holds a list, wanted a state dict"),
        (dict, "holds an empty dictionary"),
        (lambda: {"epoch": 3, 5: torch.ones(1)}, r"not tensors: epoch \(int\), 5 \(Tensor\)"),
    ],
)
def test_refuses_what_is_no_state_dict(tmp_path: Path, content: Callable[[], Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read(saved(content(), tmp_path / "r.pth"))


def test_dictionary_that_contains_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    with pytest.raises(CheckpointError, match="not tensors"):
        read(saved(content, tmp_path / "r.pth"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "r.pt")
    with pytest.raises(CheckpointError, match=r"TorchScript .*state_dict\(\)"):
        read(tmp_path / "r.pt")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("r.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer.*git lfs pull"),
        ("r.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("r.safetensors", b"12345678{}", "not a readable safetensors file"),
        ("r.pth", b"<html>", "not a readable PyTorch file"),
        ("r.pth", b"", "not a readable PyTorch file"),
        ("r.pth", DAMAGED_ZIP, "not a readable PyTorch file"),
        ("r.onnx", b"", r"r\.onnx is no weight file"),
        ("r.index.json", b"{}", "no weight_map"),
        ("r.index.json", b'{"weight_map": {"a": "../x.bin"}}', r"outside its folder: \.\./x\.bin"),
        ("r.index.json", b'{"weight_map": {"a": "x.bin"}}', r"not in the folder: x\.bin"),
        ("r.index.json", b"[", "is not JSON"),
    ],
)
def test_refuses_unreadable_files(tmp_path: Path, name: str, content: bytes, named: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=named):
        read(tmp_path / name)


def test_refuses_folders_that_lack_something(tmp_path: Path) -> None:
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(CheckpointError, match=r"none of model\.safetensors.*it holds tf_model\.h5"):
        read(tmp_path)
    saved(dict(reference().state_dict()), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "bert"}, "model_type 'bert', for which transformers .* has no image classifier"),
        ({"model_type": None}, "model_type None, for which transformers .* has no image classifier"),
        ({"auto_map": {"AutoConfig": "mine.Config"}}, r"code of its own .*mine\.Config.*trust_remote_code"),
        ({"layer_type": "basic", "groups": 2}, "basic blocks came with .*'groups': 2"),
        ({"groups": 2, "width_per_group": 3}, "groups 2 and width_per_group 3 make a bottleneck 0 wide"),
        ({"num_channels": 1}, "num_channels 1, wanted 3"),
        ({"layer_type": "dense"}, "layer_type=dense"),
        ({"hidden_act": "nope"}, "no ResNet can be built.*nope"),
        ({"depths": "deep"}, "does not describe a ResNet"),
        ({"depths": [1, 3]}, r"missing: resnet\.encoder\.stages\.1\.layers\.2\.layer\.0\.convolution\.weight"),
        ({"id2label": {"0": "a", "7": "b"}}, "number its 2 classes from 0"),
        (
            {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": None},
            re.escape("classifier.1.weight is (5, 32), wanted (3, 32)"),
        ),
    ],
)
def test_refuses_huggingface_configs(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    tiny_huggingface().save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(CheckpointError, match=named):
        read(tmp_path)


def test_refuses_unknown_preprocessing_of_a_huggingface_folder(tmp_path: Path) -> None:
    tiny_huggingface().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_std": [0.5, 0.0, 0.5]}')
    with pytest.raises(CheckpointError, match="image_std"):
        read(tmp_path)


def test_what_cannot_be_expressed_is_left_to_transformers(tmp_path: Path) -> None:
    tiny_huggingface().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_resize": false}')
    found = read(tmp_path).preprocess
    assert found is not None
    assert (found.processor, found.shape) == ("ConvNextImageProcessor", (0, 0))


def test_refuses_a_folder_whose_config_and_weights_disagree(tmp_path: Path) -> None:
    tiny_huggingface().config.save_pretrained(tmp_path)
    saved(dict(reference().state_dict()), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="Hugging Face's, the weights have torchvision's names"):
        read(tmp_path)
    assert read(tmp_path / "model.safetensors").layout == "torchvision"
    timm_folder(tmp_path, dict(tiny_huggingface().state_dict()))
    with pytest.raises(CheckpointError, match="timm's, the weights have huggingface's names"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": "resnet101d"}, "'resnet101d' has a deep stem"),
        ({"architecture": "resnetaa50"}, "'resnetaa50' has anti-aliased downsampling"),
        ({"architecture": "resnetblur50"}, "'resnetblur50' has anti-aliased downsampling"),
        ({"architecture": "seresnet50"}, "'seresnet50' has attention"),
        ({"architecture": "resnext50d_32x4d"}, "'resnext50d_32x4d' has a deep stem"),
        ({"architecture": "seresnext50_32x4d"}, "'seresnext50_32x4d' has attention"),
        ({"architecture": "resnetv2_50"}, "'resnetv2_50' has pre-activation blocks"),
        ({"architecture": "resnet50_gn"}, "'resnet50_gn' has GroupNorm"),
        ({"architecture": "vit_base_patch16_224"}, "'vit_base_patch16_224' is no plain ResNet.*timm_wrapper"),
        ({"model_args": {"act_layer": "silu", "block_args": {}}}, "act_layer='silu', block_args={}"),
        ({"global_pool": "max"}, "global_pool='max'"),
        ({"num_classes": 7}, "fc.weight has 5 rows, config.json says num_classes 7"),
        ({"label_names": ["a"]}, "label_names in config.json: 1 of them, wanted 5"),
        ({"label_names": "abcde"}, "label_names in config.json is a str; wanted: a list of names"),
        ({"pretrained_cfg": "x"}, "pretrained_cfg in config.json is a str"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode 'border'"),
    ],
)
def test_refuses_timm_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], named: str
) -> None:
    monkeypatch.setattr(networks, "timm_problem", lambda: "timm is not here")
    folder = timm_folder(tmp_path, dict(reference().state_dict()), **changes)
    with pytest.raises(CheckpointError, match=named):
        read(folder)


def test_harmless_timm_arguments_are_accepted(tmp_path: Path) -> None:
    arguments = {"num_classes": CLASSES, "in_chans": 3, "drop_rate": 0.1, "global_pool": "avg"}
    assert read(timm_folder(tmp_path, dict(reference().state_dict()), model_args=arguments)).layout == "timm"


@pytest.mark.parametrize("pickled", [False, True])
def test_hub_id_prefers_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: bool) -> None:
    model, hub = tiny_huggingface(), tmp_path / "hub"
    model.save_pretrained(hub)
    saved(load_file(hub / "model.safetensors"), hub / "pytorch_model.bin")
    if pickled:
        (hub / "model.safetensors").unlink()
    asked: list[tuple[str, str | None, list[str]]] = []

    def download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo_id, revision, allow_patterns))
        for path in (tmp_path / "hub").iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, tmp_path)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = read("microsoft/resnet-101", revision="abc")
    assert_serves(found, model)
    assert found.source == "microsoft/resnet-101"
    assert [call[:2] for call in asked] == [("microsoft/resnet-101", "abc")] * (2 if pickled else 1)
    assert (tmp_path / "pytorch_model.bin").exists() == pickled
    assert found.weights.name == ("pytorch_model.bin" if pickled else "model.safetensors")


def test_hub_failure_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=r"LocalEntryNotFoundError: no connection.*hf download a/b") as refusal:
        read("a/b", revision="main")
    assert "If a path was meant" in str(refusal.value)
    assert "--revision main" in str(refusal.value)


@pytest.mark.parametrize("source", ["nothing", "./a/b", "weights/resnet.pth", "a/b/c", Path("a/b"), "/no/such"])
def test_mistyped_paths_are_not_asked_of_the_hub(source: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise AssertionError("asked the Hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        read(source)


def test_revision_of_a_local_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"revision 'main'.*local path"):
        read(tmp_path, revision="main")


def test_imagenet_labels() -> None:
    labels = LABELS.read_text(encoding="utf-8").splitlines()
    assert (len(labels), len(set(labels))) == (1000, 1000)
    assert (labels[0], labels[207], labels[999]) == ("tench", "golden retriever", "toilet tissue")


@pytest.mark.filterwarnings("ignore")  # whatever torchvision warns of when imported is its own
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2"]
)
def test_torchvisions_own_models(tmp_path: Path, name: str) -> None:
    """timm's are in test_timm_folders.py."""
    try:
        from torchvision.models import get_model as build
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    model = randomised(build(name, num_classes=CLASSES))
    assert_serves(read(saved(model.state_dict(), tmp_path / "r.pth")), model)
