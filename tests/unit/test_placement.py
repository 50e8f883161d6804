"""Where a model runs and in which precision: every decision, with a reason a person can read."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from handlers import placement

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("asked", "gpu_id", "sees_gpu", "device", "why"),
    [
        ("cpu", None, False, "cpu", "asked for"),
        ("cpu", 1, True, "cpu", "asked for"),
        ("cuda", 3, True, "cuda:3", "asked for"),
        ("cuda", None, True, "cuda:0", "asked for"),  # TorchServe saw no GPU, PyTorch does
        ("auto", 2, True, "cuda:2", "assigned"),
        ("auto", 0, True, "cuda:0", "assigned"),  # GPU 0 is not "no GPU"
        ("auto", None, True, "cpu", "assigned no GPU"),
        ("auto", 0, False, "cpu", "sees no GPU"),  # TorchServe saw one that PyTorch cannot use
        ("auto", None, False, "cpu", "sees no GPU"),
    ],
)
def test_device(
    monkeypatch: pytest.MonkeyPatch, asked: str, gpu_id: int | None, sees_gpu: bool, device: str, why: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees_gpu)
    chosen, reason = placement.choose_device(asked, gpu_id)
    assert str(chosen) == device
    assert why in reason


@pytest.mark.parametrize("gpu_id", [None, 0])
def test_cuda_without_a_gpu_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch, gpu_id: int | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="auto would use the CPU"):
        placement.choose_device("cuda", gpu_id)


PASSED = {"passed": True, "device": "some GPU"}
FAILED = {"passed": False, "device": "some GPU"}


@pytest.mark.parametrize(
    ("asked", "device", "native_bf16", "parity", "precision", "why"),
    [
        ("fp16", CPU, False, {}, "fp16", "asked for"),
        ("fp32", GPU, True, {"fp16": PASSED}, "fp32", "asked for"),
        ("bf16", GPU, False, {"bf16": FAILED}, "bf16", "asked for"),  # a person's word goes over the gate's
        ("auto", GPU, False, {"fp16": PASSED, "bf16": FAILED}, "fp16", "some GPU"),
        ("auto", GPU, True, {"fp16": FAILED, "bf16": PASSED}, "fp32", "fp16 did not pass"),
        ("auto", GPU, True, {"bf16": PASSED}, "fp32", "no parity figures for fp16"),
        ("auto", GPU, True, {"fp16": {"passed": True}}, "fp16", "unnamed"),
        ("auto", GPU, True, {"fp16": {}}, "fp32", "did not pass"),  # figures without a verdict are no pass
        ("auto", CPU, True, {"bf16": PASSED, "fp16": FAILED}, "bf16", "some GPU"),
        ("auto", CPU, True, {"bf16": FAILED, "fp16": PASSED}, "fp32", "bf16 did not pass"),
        ("auto", CPU, True, {}, "fp32", "no parity figures for bf16"),
        ("auto", CPU, False, {"bf16": PASSED}, "fp32", "no native bf16"),
    ],
)
def test_precision(
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    device: torch.device,
    native_bf16: bool,
    parity: dict[str, Any],
    precision: str,
    why: str,
) -> None:
    monkeypatch.setattr(placement, "cpu_has_bf16", lambda: native_bf16)
    chosen, reason = placement.choose_precision(asked, device, parity)
    assert chosen == precision
    assert why in reason


@pytest.mark.parametrize(("avx", "amx", "has"), [(0, 0, False), (1, 0, True), (0, 1, True), (1, 1, True)])
def test_bf16_is_native_with_either_instruction_set(
    monkeypatch: pytest.MonkeyPatch, avx: int, amx: int, has: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx), raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx), raising=False)
    assert placement.cpu_has_bf16() is has


def test_a_torch_without_these_questions_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert placement.cpu_has_bf16() is False


@pytest.mark.parametrize(
    ("asked", "workers", "cores", "threads"),
    [(0, 1, 8, 8), (0, 2, 8, 4), (0, 3, 8, 2), (0, 16, 8, 1), (0, 0, 8, 8), (5, 16, 8, 5)],
)
def test_cpu_threads(monkeypatch: pytest.MonkeyPatch, asked: int, workers: int, cores: int, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert placement.cpu_threads(asked, workers) == threads


def test_device_name_says_what_the_cpu_is_and_how_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    name = placement.device_name(CPU)
    assert name.startswith("cpu (")
    assert name.endswith("3 threads)")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Example GPU")
    assert placement.device_name(GPU) == "cuda:0 (Example GPU)"
