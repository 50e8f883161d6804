"""A batch for which a real GPU has too little memory is run in parts, and the next one is not tried so large."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

ROOT = Path(__file__).parents[2]
CHILD = """
import json, torch
from handlers.serving.isolation import run_isolated
from handlers.serving.memory_limit import MemoryLimit

MEBIBYTE = 2**20
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction(480 * MEBIBYTE / total)  # of PyTorch's allocator, in this process
description, sizes = {}, []

def work(items):
    sizes.append(len(items))
    held = torch.ones(len(items), 32 * MEBIBYTE, dtype=torch.uint8, device="cuda")  # 32 MiB each: 15 fit
    return (held[:, 0].cpu() * torch.tensor(items)).tolist()

memory = MemoryLimit(description, "images")
for _ in range(2):
    assert run_isolated(work, list(range(64)), memory=memory) == list(range(64))
print(json.dumps([sizes, description["memory"]["largestBatch"]]))
"""


def test_a_batch_is_cut_and_the_next_is_cut_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == f"[{[64, 32, 16] + [8] * 16}, 8]", done.stderr
    assert done.stderr.count("memory is short for a batch of 64 images") == 1
