"""Modules behind the pooling on an NVIDIA GPU: fp32 there as on the CPU, whatever the engine's precision is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from handlers.encoder.packing import TokenBatch
from handlers.tasks.embeddings import Embeddings
from handlers.tasks.shared.embedding_head import EmbeddingHead, Step
from handlers.tasks.shared.pooling import Pooling
from handlers.texts.tokenization import Encoded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

STEPS = (Step("LayerNorm", 64, 64), Step("Dense", 64, 32, activation="Tanh"), Step("Normalize", 32, 32))
LENGTHS = (5, 1, 17)


@pytest.mark.parametrize("include_prompt", [True, False])
@torch.inference_mode()
def test_it_gives_what_the_cpu_gives(include_prompt: bool) -> None:
    torch.manual_seed(0)
    task = Embeddings(Pooling(include_prompt=include_prompt), hidden=64, head=EmbeddingHead(STEPS), dimensions=(8,))
    vectors = torch.randn(sum(LENGTHS), 64).half()
    left_out: tuple[int, ...] = (2, 0, 3)
    encoded: list[Any] = [Encoded("", [], [], None, skipped) for skipped in left_out]  # type: ignore[arg-type]
    inputs: list[Any] = [(item, {"dimensions": 8} if item.left_out else {}) for item in encoded]
    answers = []
    for name in ("cpu", "cuda"):
        batch = TokenBatch.pack([[1] * n for n in LENGTHS], [[0] * n for n in LENGTHS], torch.device(name))
        answers.append(task.answer(vectors.to(name), batch, inputs))
    for on_cpu, on_gpu in zip(*answers, strict=True):
        torch.testing.assert_close(torch.tensor(on_gpu), torch.tensor(on_cpu), rtol=1e-3, atol=1e-3)
    assert task.head is not None
    assert task.head.device.type == "cuda"
