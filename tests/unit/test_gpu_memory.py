"""What a worker sets so that it takes less GPU memory, and what it leaves to the user."""

from __future__ import annotations

import pytest

from handlers import gpu_memory

CHOSEN = {"CUBLAS_WORKSPACE_CONFIG": ":4096:2:16:8", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def test_both_are_set() -> None:
    environment: dict[str, str] = {}
    gpu_memory.spare(environment)
    assert environment == CHOSEN


def test_what_the_user_says_of_cublas_stays() -> None:
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":16384:8"}
    gpu_memory.spare(environment)
    assert environment == {**CHOSEN, "CUBLAS_WORKSPACE_CONFIG": ":16384:8"}


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_what_the_user_says_of_the_allocator_stays(name: str) -> None:
    """By either name: PyTorch 2.9 has a new one, and reads both."""
    environment = {name: "max_split_size_mb:64"}
    gpu_memory.spare(environment)
    assert environment == {"CUBLAS_WORKSPACE_CONFIG": CHOSEN["CUBLAS_WORKSPACE_CONFIG"], name: "max_split_size_mb:64"}
