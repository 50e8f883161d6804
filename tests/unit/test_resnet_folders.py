"""ResNets that are read without transformers: the same folded weights bit for bit, or not at all."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from handlers import engines
from handlers.engines import EngineSpec, cudnn, networks, resnet_folders
from handlers.engines.folding import Convolution, FoldedResNet, TorchResNetOps, fold_resnet, run
from handlers.selection import references

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [16, 32],
    "depths": [2, 2],
    "num_labels": 5,
    "downsample_in_bottleneck": False,
    "downsample_in_first_stage": False,
}
# All stages and depths of the published networks, with few channels.
NARROW = {"embedding_size": 4, "hidden_sizes": [8, 16, 32, 64]}
KINDS: dict[str, dict[str, Any]] = {
    "ResNet-18": {**NARROW, "hidden_sizes": [4, 8, 16, 32], "depths": [2, 2, 2, 2], "layer_type": "basic"},
    "ResNet-50": {**NARROW, "depths": [3, 4, 6, 3]},
    "ResNet-101": {**NARROW, "depths": [3, 4, 23, 3]},
    "ResNet-50 v1": {**NARROW, "depths": [3, 4, 6, 3], "downsample_in_bottleneck": True},
    "ResNeXt-50 32x4d": {
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [3, 4, 6, 3],
        "groups": 8,
        "width_per_group": 16,
    },
    "ResNeXt v1": {"hidden_sizes": [64, 128], "groups": 4, "width_per_group": 32, "downsample_in_bottleneck": True},
    "Wide ResNet-50-2": {**NARROW, "depths": [3, 4, 6, 3], "width_per_group": 128, "groups": 1},
    "basic, first stage strided": {"layer_type": "basic", "downsample_in_first_stage": True},
    "basic, stride said to be in the bottleneck": {"layer_type": "basic", "downsample_in_bottleneck": True},
    "basic without a shortcut in stage 1": {"layer_type": "basic", "hidden_sizes": [8, 16]},
    "bottleneck, first stage strided": {"downsample_in_first_stage": True, "hidden_sizes": [8, 8]},
    "one stage of odd width": {"hidden_sizes": [19], "depths": [3]},
    "one channel": {"num_channels": 1},
    "one class": {"num_labels": 1},
    "two classes without names": {"num_labels": 2},
    "two classes with names": {"num_labels": 2, "id2label": {0: "cat", 1: "dog"}},
    "plain breadth written out": {
        "groups": 1,
        "width_per_group": 64,
        "architectures": ["ResNetForImageClassification"],
    },
}

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """saved(**config values) -> the folder of a small ResNet whose BatchNorm has values of every size and sign."""

    @functools.cache
    def make(values: str) -> Path:
        torch.manual_seed(1)
        network = networks.build(transformers.ResNetConfig.from_dict({**TINY, **json.loads(values)}))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                nn.init.normal_(statistic(module.running_mean))
                nn.init.uniform_(statistic(module.running_var), 1e-6, 3.0)
        folder = tmp_path_factory.mktemp("resnet")
        network.save_pretrained(folder)
        return folder

    return lambda **values: make(json.dumps(values, sort_keys=True))


@pytest.fixture
def save(saved: Save, tmp_path: Path) -> Save:
    """save(**config values) -> a copy of such a folder, which the test may change."""
    return lambda **values: shutil.copytree(saved(**values), tmp_path / "resnet")


def statistic(values: torch.Tensor | None) -> torch.Tensor:
    assert values is not None
    return values


def spec_of(folder: Path, precision: str = "fp32") -> EngineSpec:
    return EngineSpec("image-classifier", folder, CPU, precision, image_size=32)


def edit(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({name: value for name, value in content.items() if value != "left out"}))


def convolutions(network: FoldedResNet) -> Iterator[Convolution | None]:
    yield network.stem
    for block in network.blocks:
        yield from block.body
        yield block.shortcut


def assert_same(found: FoldedResNet, wanted: FoldedResNet) -> None:
    """All tensors are the same bit for bit, in type and in layout; all numbers are the same."""
    assert [len(block.body) for block in found.blocks] == [len(block.body) for block in wanted.blocks]
    for one, other in zip(convolutions(found), convolutions(wanted), strict=True):
        assert (one is None) == (other is None)
        if one and other:
            assert_same_tensors(one.weight, other.weight)
            assert_same_tensors(one.bias, other.bias)
            assert (one.stride, one.padding, one.groups) == (other.stride, other.padding, other.groups)
    assert_same_tensors(found.weight, wanted.weight)
    assert_same_tensors(found.bias, wanted.bias)


def assert_same_tensors(one: torch.Tensor, other: torch.Tensor) -> None:
    assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
    assert torch.equal(one, other)
    assert not one.requires_grad


def by_formula(conv: Any, norm: Any, dtype: torch.dtype, shift: Any = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias, each step in fp64 and written out."""
    values = [one.detach().double() for one in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
    weight, bias, mean, variance = values
    scale = weight / (variance + norm.eps).sqrt()
    folded = conv.weight.detach().double() * scale[:, None, None, None]
    return folded.to(dtype), (bias + (0 - mean) * scale + shift).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_give_the_same_folded_network(save: Save, kind: str) -> None:
    folder = save(**KINDS[kind])
    model = networks.load(folder, torch.float32)
    for precision in ("fp32", "fp16", "bf16"):
        spec = spec_of(folder, precision)
        found = resnet_folders.load(spec)
        assert found is not None
        assert_same(found, fold_resnet(model, CPU, spec.dtype))
        assert found.stem.weight.dtype == spec.dtype
        assert found.stem.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["ResNet-18", "ResNet-50", "ResNeXt v1"])
@torch.inference_mode()
def test_it_computes_what_transformers_does(save: Save, kind: str) -> None:
    folder = save(**KINDS[kind])
    found, images = resnet_folders.load(spec_of(folder)), torch.randn(2, 3, 33, 47)
    assert found is not None
    for block in found.blocks:
        assert block.shortcut is None or not block.shortcut.bias.any()
    logits = networks.load(folder, torch.float32)(images).logits
    scale = float(logits.abs().max())
    torch.testing.assert_close(run(found, images, TorchResNetOps()) / scale, logits / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["ResNet-18", "ResNet-50", "ResNeXt v1", "Wide ResNet-50-2"])
def test_folding_has_the_bits_of_its_formula_in_fp64(save: Save, kind: str, dtype: torch.dtype) -> None:
    model = networks.load(save(**KINDS[kind]), torch.float32)
    folded = fold_resnet(model, CPU, dtype)
    modules = [block for stage in model.resnet.encoder.stages for block in stage.layers]
    for block, found in zip(modules, folded.blocks, strict=True):
        shift: Any = 0
        if found.shortcut:
            convolution, norm = block.shortcut.children()
            assert torch.equal(found.shortcut.weight, by_formula(convolution, norm, dtype)[0])
            shift = by_formula(convolution, norm, torch.float64)[1]
        for index, (layer, conv) in enumerate(zip(block.layer, found.body, strict=True)):
            last = index == len(found.body) - 1
            weight, bias = by_formula(layer.convolution, layer.normalization, dtype, shift if last else 0)
            assert torch.equal(conv.weight, weight)
            assert torch.equal(conv.bias, bias)


def test_the_weights_share_no_memory_with_the_file(save: Save) -> None:
    """A file that changes later would change the network, or end the worker."""
    folder = save()
    found, wanted = (resnet_folders.load(spec_of(folder)) for _ in range(2))
    assert found
    assert wanted
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\x00" * (path.stat().st_size // 2))
    assert_same(found, wanted)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    assert mapped == []


@pytest.mark.parametrize("values", KINDS.values(), ids=KINDS)
def test_engines_do_not_ask_transformers(save: Save, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]) -> None:
    spec = spec_of(save(**{**values, "num_channels": 3}))
    wanted = resnet_folders.through_transformers(spec)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("transformers was asked")

    monkeypatch.setattr(networks, "load", refuse)
    images = torch.randn(2, 3, 32, 32)
    found = engines.load("onnxruntime", spec).run(images)
    logits = run(wanted, images, TorchResNetOps())
    scale = float(logits.abs().max())
    torch.testing.assert_close(found / scale, logits / scale, rtol=1e-4, atol=1e-4)
    graphed: Any = engines.load("cudnn", dataclasses.replace(spec, precision="bf16")).run
    assert graphed.channels == cudnn.STEM_CHANNELS  # its graphs need a GPU


CHANGED_CONFIGS: list[dict[str, Any]] = [
    {"a_setting_of_tomorrow": True},
    {"quantization_config": {"load_in_8bit": True}},
    {"num_labels": 5},
    {"model_type": "regnet"},
    {"model_type": ["resnet"]},
    {"architectures": ["ResNetModel"]},
    {"architectures": ["ResNetForImageClassification", "ResNetModel"]},
    {"architectures": "left out"},
    {"hidden_act": "gelu"},
    {"hidden_act": "left out"},
    {"layer_type": "basic"},
    {"layer_type": "preact"},
    {"layer_type": "left out"},
    {"dtype": "float16"},
    {"dtype": "nonsense"},
    {"num_channels": 4},
    {"num_channels": 3.0},
    {"embedding_size": 9},
    {"embedding_size": True},
    {"embedding_size": "left out"},
    {"depths": [2, 1]},
    {"depths": [2, 3]},
    {"depths": [2]},
    {"depths": [2, 2, 1]},
    {"depths": [2, 0]},
    {"depths": [2, True]},
    {"depths": "left out"},
    {"depths": {"0": 2}},
    {"hidden_sizes": [16, 33]},
    {"hidden_sizes": [16]},
    {"hidden_sizes": [16, 32, 64]},
    {"hidden_sizes": [], "depths": []},
    {"hidden_sizes": None},
    {"downsample_in_bottleneck": 1},
    {"downsample_in_bottleneck": "left out"},
    {"downsample_in_first_stage": "yes"},
    {"groups": 2},
    {"groups": 0},
    {"groups": True},
    {"groups": None},
    {"groups": 1.0},
    {"width_per_group": 128},
    {"width_per_group": -64},
    {"width_per_group": 7},
    {"stage_names": ["stem", "stage1"]},
    {"out_features": ["stage1"]},
    {"out_features": None},
    {"out_indices": [1]},
    {"id2label": {"0": "one"}},
    {"id2label": {str(index): "same" for index in range(6)}},
    {"id2label": {"0": "a", "00": "b", "1": "c", "2": "d", "3": "e"}},
    {"id2label": {"a": "a", "b": "b", "c": "c", "d": "d", "e": "e"}},
    {"id2label": {str(index): index for index in range(5)}},
    {"id2label": [1, 2, 3, 4, 5]},
    {"id2label": "left out"},
    {"id2label": {}},
    {"label2id": [0]},
    {"label2id": {"a": 0.5}},
]


@pytest.mark.parametrize("values", CHANGED_CONFIGS, ids=str)
def test_what_is_not_wholly_known_goes_through_transformers(save: Save, values: dict[str, Any]) -> None:
    folder = save()
    assert resnet_folders.read(folder)
    edit(folder, **values)
    assert resnet_folders.read(folder) is None
    assert resnet_folders.load(spec_of(folder)) is None


@pytest.mark.parametrize(
    "values", [{"layer_type": "basic", "groups": 2}, {"layer_type": "basic", "width_per_group": 128}]
)
def test_basic_blocks_have_no_other_breadth(save: Save, values: dict[str, Any]) -> None:
    folder = save(layer_type="basic")
    assert resnet_folders.read(folder)
    edit(folder, **values)
    with pytest.raises(ValueError, match="only bottlenecks"):
        resnet_folders.folded(spec_of(folder))


@pytest.mark.parametrize("strided", ["downsample_in_bottleneck", "downsample_in_first_stage"])
def test_strides_that_no_tensor_shows_are_those_of_the_config(save: Save, strided: str) -> None:
    """Both networks have the same tensors."""
    folder = save()
    before = resnet_folders.load(spec_of(folder))
    edit(folder, **{strided: True})
    after, wanted = resnet_folders.load(spec_of(folder)), resnet_folders.through_transformers(spec_of(folder))
    assert before
    assert after
    assert_same(after, wanted)
    strides = [[conv.stride for conv in convolutions(network) if conv] for network in (before, after)]
    assert strides[0] != strides[1]


INNER = "resnet.encoder.stages.1.layers.0.layer.1"


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop(f"{INNER}.convolution.weight"),
        lambda state: state.pop(f"{INNER}.normalization.running_var"),
        lambda state: state.pop(f"{INNER}.normalization.num_batches_tracked"),
        lambda state: state.pop("classifier.1.bias"),
        lambda state: state.update({f"{INNER}.convolution.bias": torch.zeros(8)}),
        lambda state: state.update({"fc.weight": torch.zeros(5, 32)}),
        lambda state: state.update({"resnet.encoder.stages.0.layers.1.shortcut.convolution.weight": torch.ones(16)}),
        lambda state: state.update({f"{INNER}.conv.weight": state.pop(f"{INNER}.convolution.weight")}),
        lambda state: state.update({f"{INNER}.normalization.gamma": state.pop(f"{INNER}.normalization.weight")}),
        lambda state: state.update({f"{INNER}.convolution.weight": torch.zeros(8, 8, 1, 1)}),
        lambda state: state.update({f"{INNER}.convolution.weight": torch.zeros(8, 4, 3, 3)}),
        lambda state: state.update({"classifier.1.weight": torch.zeros(6, 32)}),
        lambda state: state.update({"classifier.1.bias": torch.zeros(5, dtype=torch.float16)}),
        lambda state: state.update({f"{INNER}.convolution.weight": torch.zeros(8, 8, 3, 3).double()}),
        lambda state: state.update({f"{INNER}.normalization.num_batches_tracked": torch.zeros(())}),
    ],
    ids=[
        *("no weight", "no variance", "no count", "no bias", "bias of a convolution", "extra", "extra shortcut"),
        *("other name", "gamma", "1x1", "grouped", "six classes", "fp16", "fp64", "count in fp32"),
    ],
)
def test_other_tensors_go_through_transformers(save: Save, change: Callable[[dict[str, Any]], object]) -> None:
    folder = save()
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert resnet_folders.read(folder) is None
    assert resnet_folders.load(spec_of(folder)) is None


def test_fp16_weights_still_serve(save: Save) -> None:
    folder = save()
    state = load_file(folder / "model.safetensors")
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    wanted = fold_resnet(networks.load(folder, torch.float32), CPU, torch.float32)
    assert resnet_folders.load(spec_of(folder)) is None
    assert_same(resnet_folders.folded(spec_of(folder)), wanted)


def test_damaged_and_missing_files_go_through_transformers(save: Save) -> None:
    folder = save()
    weights, config = folder / "model.safetensors", folder / "config.json"
    weights.write_bytes(weights.read_bytes()[:-5])
    assert resnet_folders.read(folder) is None
    weights.write_bytes(b"\x00" * 100)
    assert resnet_folders.read(folder) is None
    weights.unlink()
    assert resnet_folders.read(folder) is None
    for text in ("{", "[]", "null"):
        config.write_text(text, encoding="utf-8")
        assert resnet_folders.read(folder) is None
    config.unlink()
    assert resnet_folders.read(folder) is None


def test_an_adapter_goes_through_transformers(save: Save) -> None:
    folder = save()
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert resnet_folders.read(folder) is None


def test_a_setting_that_is_not_known_still_serves(save: Save) -> None:
    folder = save()
    wanted = resnet_folders.load(spec_of(folder))
    edit(folder, a_setting_of_tomorrow=True)
    assert wanted
    assert_same(resnet_folders.folded(spec_of(folder)), wanted)


def test_an_image_encoder_is_no_classifier(tmp_path: Path) -> None:
    config = transformers.ResNetConfig.from_dict(TINY)
    transformers.ResNetModel(config).save_pretrained(tmp_path)  # type: ignore[no-untyped-call, unused-ignore]
    assert resnet_folders.read(tmp_path) is None


SECONDS = ("transformers", "scipy", "sympy", "torch._dynamo", "torch.distributed.tensor")


def ran(code: str, *arguments: str) -> str:
    """What a fresh process prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, *arguments]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(("engine", "precision"), [("onnxruntime", "fp32"), ("cudnn", "fp16")])
def test_an_engine_that_loads_it_never_imports_transformers(save: Save, engine: str, precision: str) -> None:
    code = (
        "import sys, torch; from pathlib import Path; import handlers.image_classifier\n"
        "from handlers import engines\n"
        "spec = engines.EngineSpec('image-classifier', Path(sys.argv[1]), torch.device('cpu'), sys.argv[3])\n"
        "assert engines.get(sys.argv[2]).why_never(spec) is None\n"
        "loaded = engines.load(sys.argv[2], spec)\n"
        "assert loaded.details['network'] == 'ResNeXtForImageClassification (4 groups, width 32 a group)'\n"
        f"print(sorted(set({SECONDS}) & sys.modules.keys()))\n"
    )
    folder = save(groups=4, width_per_group=32)
    assert ran(code, str(folder), engine, precision) == "[]"


def test_a_worker_that_serves_it_never_imports_transformers(save: Save) -> None:
    """From TorchServe's call of initialize until it can answer. The archive has the reference of packaging."""
    folder = save()
    images = torch.randn(2, 3, 32, 32)
    references.Images(images, networks.load(folder, torch.float32)(images).logits.detach()).save(folder)
    (folder / "labels.json").write_text(json.dumps([*"abcde"]), encoding="utf-8")
    code = (
        "import sys; from types import SimpleNamespace\n"
        "from handlers.image_classifier import ImageClassifier\n"
        "handler = ImageClassifier()\n"
        "section = {'precision': 'fp32', 'device': 'cpu', 'cpuThreads': 1, 'planCache': sys.argv[2],\n"
        "           'engine': 'onnxruntime', 'preprocess': {'size': 32, 'resize': 32}}\n"
        "properties = {'model_dir': sys.argv[1], 'batch_size': 1, 'gpu_id': None}\n"
        "handler.initialize(SimpleNamespace(system_properties=properties, model_yaml_config={'handler': section},\n"
        "                                   model_name='fake', manifest={}, metrics=None))\n"
        "assert handler.model.description['engine']['checked']['against'] == \"the archive's fp32 reference\"\n"
        "assert 'transformers' not in handler.model.description['start']\n"
        "handler.close()\n"
        f"print(sorted(set({SECONDS}) & sys.modules.keys()))\n"
    )
    assert ran(code, str(folder), str(folder / "plans")) == "[]"
