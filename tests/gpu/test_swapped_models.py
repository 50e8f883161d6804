"""A model with its encoder swapped, moved to an NVIDIA GPU: Triton's kernels run it, and it answers as before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

from handlers.encoder import padded
from handlers.encoder.swap import fused_encoder, swap_encoder, unswap_encoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

GPU = torch.device("cuda", 0)
LENGTHS = torch.tensor([5, 64, 1, 33])


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(num_hidden_layers=3)
    return transformers.BertForSequenceClassification(config).eval()


def masks(left: bool) -> torch.Tensor:
    places = torch.arange(64)
    return (places >= 64 - LENGTHS[:, None] if left else places < LENGTHS[:, None]).long()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("left", [False, True], ids=["padded on the right", "padded on the left"])
@torch.inference_mode()
def test_it_answers_as_before(model: Any, left: bool, dtype: torch.dtype) -> None:
    given = {"input_ids": torch.randint(1000, 20_000, (4, 64)), "attention_mask": masks(left)}
    wanted = model(**given).logits
    there = {name: value.to(GPU) for name, value in given.items()}
    vanilla = copy.deepcopy(model).to(GPU, dtype)(**there).logits.float().cpu()
    swapped: Any = swap_encoder(model).to(GPU, dtype)
    found = swapped(**there).logits.float().cpu()
    own, ours = ((one - wanted).norm(dim=1) / wanted.norm(dim=1) for one in (vanilla, found))
    assert ours.max() <= 2 * own.max()
    back: Any = unswap_encoder(swapped)
    torch.testing.assert_close(back(**there).logits.float().cpu(), vanilla)


def test_tritons_kernels_run_it(model: Any) -> None:
    encoder = fused_encoder(swap_encoder(model).to(GPU, torch.float16))
    hidden = torch.randn(1, 2, 768, device=GPU)
    assert type(padded.ops_for(encoder, hidden.half())).__name__ == "TritonEncoderOps"
    assert padded.ops_for(encoder, hidden) is encoder.ops


@torch.inference_mode()
def test_autocast_does_not_reach_tritons_kernels(model: Any) -> None:
    """Its casts would give them activations in bf16 beside weights in fp16."""
    encoder = fused_encoder(swap_encoder(model).to(GPU, torch.float16))
    hidden = torch.randn(2, 40, 768, device=GPU, dtype=torch.float16)
    wanted = padded.run_padded(encoder, hidden, None)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = padded.run_padded(encoder, hidden, None)
    assert torch.equal(found, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@torch.inference_mode()
def test_a_gpu_that_is_not_the_current_one(model: Any) -> None:
    encoder = fused_encoder(swap_encoder(model).to(GPU, torch.float16))
    hidden = torch.randn(2, 40, 768, device=GPU, dtype=torch.float16)
    wanted = padded.run_padded(encoder, hidden, None).cpu()
    second = torch.device("cuda", 1)
    found = padded.run_padded(encoder.to(second), hidden.to(second), None)
    assert found.device == second
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(found.cpu(), wanted)
