"""What ends a worker on a real GPU: a context that is lost, and not memory that is short."""

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
import sys, torch
from handlers.serving.isolation import run_isolated

def out_of_bounds(items):
    table = torch.zeros(4, device="cuda")
    return table[torch.tensor(items, device="cuda")].cpu().tolist()

def too_much(items):
    if len(items) > 1:
        torch.empty(2**50, device="cuda")
    return list(items)

def told_otherwise(items):
    if len(items) > 1:
        raise RuntimeError("CUDA error: out of memory")
    return list(items)

torch.zeros(1, device="cuda")
print(run_isolated(too_much, [1, 2]), run_isolated(told_otherwise, [3, 4]), flush=True)
print(run_isolated(out_of_bounds, [0, 99]), flush=True)
"""


def test_a_lost_context_ends_the_process_and_short_memory_does_not() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["[1, 2] [3, 4]"], done.stderr
    assert done.returncode != 0
    assert "the GPU's context is lost" in done.stderr
