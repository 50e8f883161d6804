"""load_archive on a GPU: the device that was asked for, calls from other threads, and memory that comes back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from handlers import load_archive

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

DIGITS = Path(__file__).parents[2] / "archive" / "digits"


def test_the_last_gpu_answers_from_any_thread(digits_mar: Path) -> None:
    last = torch.cuda.device_count() - 1
    before = torch.cuda.current_device()
    samples = sorted((DIGITS / "samples").iterdir())
    with load_archive(digits_mar, device=f"cuda:{last}") as model, ThreadPoolExecutor(4) as threads:
        assert str(model.describe()["device"]["name"]).startswith(f"cuda:{last} ")
        here = model.predict(samples, top_k=1)
        there = list(threads.map(lambda path: model.predict([path], top_k=1)[0], samples))
        assert [answer[0]["label"] for answer in here] == [answer[0]["label"] for answer in there]
    torch.cuda.set_device(before)


def test_closing_gives_the_memory_back(digits_mar: Path) -> None:
    load_archive(digits_mar, device="cuda").close()  # libraries keep their workspaces
    before = torch.cuda.memory_allocated()
    load_archive(digits_mar, device="cuda").close()
    assert torch.cuda.memory_allocated() <= before


def test_a_gpu_that_is_not_there_is_refused(digits_mar: Path) -> None:
    with pytest.raises(ValueError, match="PyTorch sees"):
        load_archive(digits_mar, device="cuda:99")
