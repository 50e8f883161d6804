"""The folded ResNet computes what transformers' ResNet computes; buckets, and what the cuDNN engine does not run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import ResNetConfig

from handlers.engines import EngineSpec, cudnn, networks
from handlers.engines.folding import Convolution, TorchResNetOps, fold_resnet, run
from handlers.engines.graphs import BUCKETS, bucket_of

CPU = torch.device("cpu")


def trained(layer_type: str, **changes: object) -> Any:
    """A small ResNet of any breadth whose BatchNorm layers have statistics and weights of every sign and size."""
    torch.manual_seed(0)
    settings = {"layer_type": layer_type, "embedding_size": 8, "hidden_sizes": [16, 24, 32], "depths": [2, 1, 2]}
    config = ResNetConfig.from_dict({**settings, "num_labels": 7, **changes})
    model = networks.build(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1.0, 0.3)
            torch.nn.init.normal_(module.bias, 0.0, 0.3)
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.normal_(module.running_mean, 0.0, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.3, 3.0)
    model.train(False)
    return model


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"downsample_in_bottleneck": True}, {"downsample_in_first_stage": True}],
    ids=["v1.5", "v1", "first stage strided"],
)
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 3, 33, 47)], ids=["even", "odd sides"])
@torch.inference_mode()
def test_folded_is_the_same_function(layer_type: str, changes: dict[str, bool], shape: tuple[int, ...]) -> None:
    model = trained(layer_type, **changes)
    images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    untouched = images.clone()
    logits = run(fold_resnet(model, CPU, torch.float32), images, TorchResNetOps())
    torch.testing.assert_close(logits, model(images).logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(images, untouched)  # the fused calls work in place on their own results only


@pytest.mark.parametrize(
    ("groups", "width_per_group"), [(2, 64), (4, 32), (1, 128)], ids=["ResNeXt", "narrow groups", "Wide ResNet"]
)
@pytest.mark.parametrize("downsample_in_bottleneck", [False, True], ids=["v1.5", "v1"])
@torch.inference_mode()
def test_folded_groups_and_widths_are_the_same_function(
    groups: int, width_per_group: int, downsample_in_bottleneck: bool
) -> None:
    changes = {"groups": groups, "width_per_group": width_per_group, "hidden_sizes": [16, 32, 64]}
    model = trained("bottleneck", **changes, downsample_in_bottleneck=downsample_in_bottleneck)
    images = torch.randn((2, 3, 33, 47)).contiguous(memory_format=torch.channels_last)
    network = fold_resnet(model, CPU, torch.float32)
    torch.testing.assert_close(run(network, images, TorchResNetOps()), model(images).logits, rtol=1e-4, atol=1e-4)
    assert {tuple(conv.groups for conv in block.body) for block in network.blocks} == {(1, groups, 1)}
    assert network.blocks[0].body[1].weight.shape == (
        width := 4 * width_per_group // 64 * groups,
        width // groups,
        3,
        3,
    )


def test_grouped_convolutions_go_to_cudnn_with_their_groups_and_never_to_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def fused(images: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        asked.append(rest[-1])
        return images

    monkeypatch.setattr(torch, "cudnn_convolution_relu", fused)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", fused)
    monkeypatch.setattr(cudnn, "kernels", lambda: pytest.fail("Triton was asked"))
    # 1x1 and so small that it would go to Triton's kernel, were it not grouped.
    conv = Convolution(torch.zeros(64, 32, 1, 1), torch.zeros(64), 1, 0, groups=2)
    for operations in (cudnn.CudnnResNetOps(), cudnn.TritonResNetOps()):
        operations.conv_relu(torch.zeros(1, 64, 4, 4), conv)
        operations.conv_add_relu(torch.zeros(1, 64, 4, 4), conv, torch.zeros(1, 64, 4, 4))
        shortcut = Convolution(torch.zeros(64, 32, 1, 1), torch.zeros(64), 1, 0)
        operations.conv_add_conv_relu(torch.zeros(1, 64, 4, 4), conv, torch.zeros(1, 32, 4, 4), shortcut)
    assert asked == [2, 2, 2, 2, 2, 2]


# Convolutions of ResNet-101, at batches at whose sizes the faster one changes.
@pytest.mark.parametrize(
    ("count", "side", "depth", "out", "small"),
    [
        (32, 56, 64, 256, True),
        (64, 56, 64, 256, False),
        (8, 56, 256, 64, True),
        (16, 14, 256, 1024, False),
        (2, 14, 1024, 256, True),
        (4, 14, 1024, 256, False),
        (1, 7, 2048, 512, False),
    ],
)
def test_few_and_shallow_sums_are_tritons(count: int, side: int, depth: int, out: int, small: bool) -> None:
    images = torch.empty(count, side, side, depth, device="meta").permute(0, 3, 1, 2)
    conv = Convolution(torch.empty(out, depth, 1, 1, device="meta"), torch.empty(out, device="meta"), 1, 0)
    assert cudnn._is_small(images, conv) == small


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's fused call, as PyTorch computes it."""

    def add_relu(
        images: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, alpha: float, bias: torch.Tensor,
        stride: list[int], padding: list[int], dilation: list[int], groups: int,
    ) -> torch.Tensor:  # fmt: skip
        return TorchResNetOps().conv_add_relu(
            images, Convolution(weight, bias, stride[0], padding[0], groups), residual
        )

    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", add_relu)


def seeded(*shape: int, seed: int) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("operations", [cudnn.CudnnResNetOps(), cudnn.TritonResNetOps()])
@pytest.mark.parametrize(("side", "stride"), [(6, 1), (6, 2), (7, 2)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_block_that_changes_its_size_is_both_convolutions(
    operations: Any, monkeypatch: pytest.MonkeyPatch, side: int, stride: int, kernel: int
) -> None:
    """Basic blocks, which end in a 3x3 convolution, go to cuDNN; what ends in 1x1 to Triton, where that is there."""
    twin = SimpleNamespace(
        conv1x1_fits=lambda images, weight: weight.shape[2:] == (1, 1),
        conv1x1_add_conv1x1_relu=lambda images, weight, bias, source, projection, stride: (
            TorchResNetOps().conv_add_conv_relu(
                images, Convolution(weight, bias, 1, 0), source, Convolution(projection, bias * 0, stride, 0)
            )
        ),
    )
    monkeypatch.setattr(cudnn, "kernels", lambda: twin)
    conv = Convolution(seeded(16, 8, kernel, kernel, seed=1), seeded(16, seed=2), 1, kernel // 2)
    shortcut = Convolution(seeded(16, 4, 1, 1, seed=3), torch.zeros(16), stride, 0)
    images = seeded(2, 8, -(-side // stride), -(-side // stride), seed=4)
    source = seeded(2, 4, side, side, seed=5)
    found = operations.conv_add_conv_relu(images, conv, source, shortcut)
    torch.testing.assert_close(found, TorchResNetOps().conv_add_conv_relu(images, conv, source, shortcut))


# Stage 1 of a ResNet-101 and what differs from it in one point; batches at whose sizes the faster way changes.
@pytest.mark.parametrize(
    ("count", "side", "depth", "stride", "groups", "source", "one"),
    [
        (2, 56, 64, 1, 1, 256, True),
        (2, 56, 64, 1, 1, 64, True),
        (1, 56, 64, 1, 1, 256, False),
        (8, 28, 64, 1, 1, 256, True),
        (8, 28, 128, 1, 1, 512, False),
        (8, 56, 64, 2, 1, 256, False),
        (8, 56, 64, 1, 32, 256, False),
        (8, 56, 64, 1, 1, 32, False),
    ],
)
def test_stage_1_ends_its_blocks_in_one_kernel(
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    side: int,
    depth: int,
    stride: int,
    groups: int,
    source: int,
    one: bool,
) -> None:
    calls: list[str] = []
    fits = SimpleNamespace(
        conv3x3_conv1x1_fits=lambda images, inner, weight: inner.shape == (64, 64, 3, 3),
        conv1x1_fits=lambda images, weight: weight.shape[1] == images.shape[1] and weight.shape[1] % 64 == 0,
        conv3x3_conv1x1_relu=lambda *arguments: calls.append("one kernel"),
    )
    monkeypatch.setattr(cudnn, "kernels", lambda: fits)
    for name in ("conv_relu", "conv_add_relu", "conv_add_conv_relu"):
        monkeypatch.setattr(cudnn.TritonResNetOps, name, lambda *arguments, name=name: calls.append(name))

    def on_meta(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta")

    inner = Convolution(on_meta(depth, depth // groups, 3, 3), on_meta(depth), stride, 1, groups)
    last = Convolution(on_meta(4 * depth, depth, 1, 1), on_meta(4 * depth), 1, 0)
    shortcut = (
        None if source == 4 * depth else Convolution(on_meta(4 * depth, source, 1, 1), on_meta(4 * depth), 1, 0)
    )
    images, before = on_meta(count, depth, side, side), on_meta(count, source, side, side)
    cudnn.TritonResNetOps().block_tail(images, inner, last, before, shortcut)
    assert calls == (
        ["one kernel"] if one else ["conv_relu", "conv_add_relu" if shortcut is None else "conv_add_conv_relu"]
    )


def test_folding_leaves_the_model_alone() -> None:
    model = trained("bottleneck")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fold_resnet(model, CPU, torch.float16)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_folded_weights_have_the_asked_type_and_layout() -> None:
    network = fold_resnet(trained("bottleneck"), CPU, torch.bfloat16)
    assert network.stem.weight.dtype == network.blocks[0].body[0].bias.dtype == torch.bfloat16
    assert network.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert [block.shortcut is None for block in network.blocks] == [False, True, False, False, True]


def test_other_activations_are_refused() -> None:
    with pytest.raises(ValueError, match="gelu"):
        fold_resnet(trained("basic", hidden_act="gelu"), CPU, torch.float32)


@pytest.mark.parametrize(("count", "bucket"), [(1, 1), (2, 2), (3, 4), (33, 64), (256, 256)])
def test_the_smallest_bucket_that_fits(count: int, bucket: int) -> None:
    assert bucket_of(count) == bucket


def test_beyond_the_largest_bucket() -> None:
    with pytest.raises(ValueError, match="257 rows"):
        bucket_of(BUCKETS[-1] + 1)


@pytest.mark.parametrize(
    ("device", "precision", "config", "reason"),
    [
        ("cpu", "fp16", {"model_type": "resnet"}, "GPU"),
        ("cuda", "fp32", {"model_type": "resnet"}, "fp32"),
        ("cuda", "fp16", {"model_type": "resnet", "hidden_act": "gelu"}, "gelu"),
        (
            "cuda",
            "fp16",
            {"model_type": "vit"},
            "runs ResNets, ResNeXts and Wide ResNets, and the network is of type vit",
        ),
    ],
)
def test_what_it_does_not_run_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, precision: str, config: object, reason: str
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    spec = EngineSpec("image-classifier", tmp_path, torch.device(device), precision)
    assert reason in str(cudnn.ENGINE.why_not_here(spec))


def test_it_runs_on_a_gpu_in_half_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}', encoding="utf-8")
    assert cudnn.ENGINE.why_not_here(EngineSpec("image-classifier", tmp_path, torch.device("cuda"), "fp16")) is None
