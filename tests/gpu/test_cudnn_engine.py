"""The cuDNN engine on an NVIDIA GPU against fp32 on the CPU: every bucket, padding, and shared graph memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import train_digits
from transformers import ResNetForImageClassification

from handlers.engines import EngineSpec, LoadedEngine, cudnn, networks, resnet_folders
from handlers.engines.folding import Convolution, TorchResNetOps
from handlers.images.batching import Batcher
from handlers.images.preparation import prepare
from handlers.images.preprocess import Preprocess
from handlers.selection.candidates import choose

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

DIGITS = Path(__file__).parents[2] / "archive" / "digits"
PREPROCESS = Preprocess(size=32, resize=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def engine() -> LoadedEngine:
    return cudnn.ENGINE.load(spec())


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """(360, 3, 32, 32): the held-out digits, normalised, fp32, on the CPU."""
    files = [train_digits.digit_png(digit) for digit in train_digits.split().held_out_images]
    crops = [crop for file in files for crop in prepare(file, PREPROCESS, 10**6)]
    return Batcher(PREPROCESS, torch.device("cpu"), torch.float32)(crops)


@pytest.fixture(scope="module")
@torch.inference_mode()
def reference(images: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = ResNetForImageClassification.from_pretrained(DIGITS).train(False)(images).logits
    return logits


def spec(precision: str = "fp16") -> EngineSpec:
    return EngineSpec("image-classifier", DIGITS, torch.device("cuda", 0), precision)


def run(engine: LoadedEngine, images: torch.Tensor, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    batch = images.to("cuda", dtype).contiguous(memory_format=torch.channels_last)
    return engine.run(batch).float().cpu()


def test_auto_takes_it_in_half_precision_only() -> None:
    assert choose("auto", spec("fp16")) == choose("auto", spec("bf16")) == ["cudnn", "torch_eager"]
    assert choose("auto", spec("fp32")) == ["torch_eager"]


# 1 and every edge of a bucket; 300 and 360 pass the largest and are run in parts.
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 31, 32, 33, 64, 100, 128, 255, 256, 257, 300, 360])
def test_logits_of_every_batch_size(
    engine: LoadedEngine, images: torch.Tensor, reference: torch.Tensor, count: int
) -> None:
    logits = run(engine, images[:count])
    errors = (logits - reference[:count]).norm(dim=1) / reference[:count].norm(dim=1)
    assert errors.max() < 1e-2
    assert torch.equal(logits.argmax(dim=1), reference[:count].argmax(dim=1))


def test_it_is_loaded_without_transformers(
    monkeypatch: pytest.MonkeyPatch, images: torch.Tensor, engine: LoadedEngine
) -> None:
    """With the weights that transformers' network gives, bit for bit."""
    direct, through = resnet_folders.load(spec()), resnet_folders.through_transformers(spec())
    assert direct is not None
    for found, wanted in zip(direct.blocks, through.blocks, strict=True):
        for one, other in zip(found.body, wanted.body, strict=True):
            assert one.weight.is_cuda
            assert torch.equal(one.weight, other.weight)
            assert torch.equal(one.bias, other.bias)
    monkeypatch.setattr(networks, "load", lambda *_: pytest.fail("transformers was asked"))
    again, before = run(cudnn.ENGINE.load(spec()), images[:3]), run(engine, images[:3])
    assert (again - before).norm() / before.norm() < 1e-2  # each load chooses its kernels by measuring


def test_answers_survive_later_batches(engine: LoadedEngine, images: torch.Tensor) -> None:
    """All buckets share one memory pool: an answer must not change when another bucket runs."""
    batches = [images[:count].to("cuda", torch.float16) for count in (1, 8, 64, 3)]
    outputs = [engine.run(batch.contiguous(memory_format=torch.channels_last)) for batch in batches]
    for batch, output in zip(batches, outputs, strict=True):
        again = engine.run(batch.contiguous(memory_format=torch.channels_last))
        assert torch.equal(again, output)


def test_padding_does_not_leak(engine: LoadedEngine, images: torch.Tensor) -> None:
    run(engine, images[:64] * 100)  # leaves large values behind in the bucket of 64
    three = run(engine, images[:33])
    torch.testing.assert_close(three, run(engine, images[:33]), rtol=0, atol=0)
    torch.testing.assert_close(three[:1], run(engine, images[:1]), rtol=1e-2, atol=2e-2)


def test_bf16(images: torch.Tensor, reference: torch.Tensor) -> None:
    logits = run(cudnn.ENGINE.load(spec("bf16")), images[:64], torch.bfloat16)
    errors = (logits - reference[:64]).norm(dim=1) / reference[:64].norm(dim=1)
    assert errors.max() < 5e-2


@pytest.mark.parametrize("projects", [False, True], ids=["identity", "projection"])
@pytest.mark.parametrize("count", [2, 3, 17])
@torch.inference_mode()
def test_a_block_of_stage_1_ends_in_one_kernel(count: int, projects: bool) -> None:
    """Against fp32 on the CPU, and no further from it than cuDNN's two calls."""

    def random(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=generator).half().float()
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

    def conv(out: int, depth: int, kernel: int, bias: float = 0.1) -> Convolution:
        weight = random(out, depth, kernel, kernel) * (2 / (depth * kernel**2)) ** 0.5
        return Convolution(weight.half().float(), random(out) * bias, 1, kernel // 2)

    def on_gpu(conv: Convolution) -> Convolution:
        return dataclasses.replace(conv, weight=conv.weight.cuda().half(), bias=conv.bias.cuda().half())

    generator = torch.Generator().manual_seed(count)
    inner, last, images = conv(64, 64, 3), conv(256, 64, 1), random(count, 64, 56, 56).relu_()
    source, shortcut = random(count, 64 if projects else 256, 56, 56), conv(256, 64, 1, 0) if projects else None
    wanted = TorchResNetOps().block_tail(images, inner, last, source, shortcut)
    given = (images.cuda().half(), on_gpu(inner), on_gpu(last), source.cuda().half())
    errors = [
        float((operations.block_tail(*given, on_gpu(shortcut) if shortcut else None).cpu().float() - wanted).norm())
        for operations in (cudnn.TritonResNetOps(), cudnn.CudnnResNetOps())
    ]
    assert cudnn._is_one_kernel(*given, on_gpu(shortcut) if shortcut else None)
    assert errors[0] <= 1.05 * errors[1]
    assert errors[0] < 2e-3 * float(wanted.norm())
