"""A worker's start on an NVIDIA GPU: casting there gives the CPU's bits, and takes little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from handlers.encoder.packed import PackedModel
from handlers.engines import EngineSpec, bert_folders, text_networks
from handlers.engines.placing import place

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
LAYERS, HIDDEN, WORDS = 6, 512, 20_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of a few layers with random weights, as packaging saves it."""
    path = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        intermediate_size=4 * HIDDEN,
        vocab_size=WORDS,
    )
    torch.manual_seed(0)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(path)
    return path


def spec_of(folder: Path, precision: str) -> EngineSpec:
    return EngineSpec("text-encoder", folder, GPU, precision, task="embeddings")


def cast_on_the_cpu(spec: EngineSpec) -> PackedModel:
    network = text_networks.load_transformer(spec.model_dir, spec.task, dtype=torch.float32).eval()
    return PackedModel(network, spec.task).to(CPU, spec.dtype).eval()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_are_those_that_the_cpu_casts(folder: Path, precision: str) -> None:
    spec = spec_of(folder, precision)
    wanted = cast_on_the_cpu(spec).state_dict()
    for model in (bert_folders.load(spec), text_networks.swapped_transformer(spec)):
        assert model is not None
        found = model.state_dict()
        assert list(found) == list(wanted)
        for name, value in found.items():
            assert (value.device, value.dtype) == (GPU, spec.dtype), name
            assert torch.equal(value.cpu(), wanted[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_magnitude_is_rounded_as_on_the_cpu(dtype: torch.dtype) -> None:
    """Ties, fp16's subnormal numbers, overflow, infinities and signed zeros."""
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(-(2**31), 2**31 - 1, (1_000_000,), dtype=torch.int64, generator=generator).int()
    values = bits.view(torch.float32)
    ties = (torch.arange(2**16, dtype=torch.int32) << 13 | 0x1000).view(torch.float32)
    every = torch.cat([values, ties, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 65519.0, 65520.0])])
    every = every[(every == 0) | (every.abs() >= torch.finfo(torch.float32).tiny)]  # no NaN, nor fp32's subnormals
    network = nn.Embedding.from_pretrained(every[:, None])
    wanted = every[:, None].to(dtype).view(torch.int16)
    assert torch.equal(place(network, GPU, dtype).weight.cpu().view(torch.int16), wanted)


def test_loading_takes_little_beside_the_weights(folder: Path) -> None:
    """At most one tensor is there in fp32. A process of its own has a clean allocator."""
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from handlers.engines import EngineSpec, bert_folders\n"
        "gpu = torch.device('cuda', 0)\n"
        "spec = EngineSpec('text-encoder', Path(sys.argv[1]), gpu, 'fp16', task='embeddings')\n"
        "model = bert_folders.load(spec)\n"
        "whole = sum(value.nbytes for value in model.state_dict().values())\n"
        "torch.cuda.empty_cache()\n"
        "print(torch.cuda.max_memory_allocated() - whole, torch.cuda.memory_reserved() - whole)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    peak, kept = map(int, ran.stdout.split())
    largest = 4 * WORDS * HIDDEN
    assert peak < 1.5 * largest + (1 << 20)
    assert kept < 64 << 20
