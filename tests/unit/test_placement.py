"""Where a model runs and in which precision: every decision, with a reason a person can read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from server.paths import CONFIG
from server.process import Server

from handlers import cpus, placement

ROOT = Path(__file__).parents[2]
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
    ("asked", "workers", "device", "told", "threads"),
    [
        (0, 1, CPU, None, 8),
        (0, 2, CPU, None, 4),
        (0, 3, CPU, None, 2),
        (0, 16, CPU, None, 1),
        (0, 0, CPU, None, 8),
        (5, 16, CPU, None, 5),
        (0, 1, GPU, None, 1),
        (3, 4, GPU, None, 3),
        (0, 4, CPU, "6", 6),
        (0, 4, GPU, "6", 6),
        (2, 4, CPU, "6", 2),
        (0, 4, CPU, "3,2", 3),
        (0, 4, CPU, "", 2),
        (0, 4, CPU, "0", 2),
        (0, 4, CPU, "many", 2),
    ],
)
def test_cpu_threads(
    monkeypatch: pytest.MonkeyPatch, asked: int, workers: int, device: torch.device, told: str | None, threads: int
) -> None:
    monkeypatch.setattr(cpus, "usable", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert placement.cpu_threads(asked, workers, device) == threads


@pytest.mark.parametrize(("told", "wanted"), [(None, "4"), ("7", "7")])
def test_tokenizers_get_the_same_share_unless_someone_decided(
    monkeypatch: pytest.MonkeyPatch, told: str | None, wanted: str
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(cpus, "usable", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("RAYON_NUM_THREADS", told or "")
    if told is None:
        monkeypatch.delenv("RAYON_NUM_THREADS")
    placement.set_threads(0, 2, GPU)
    assert (set_to, os.environ["RAYON_NUM_THREADS"]) == ([1], wanted)


def test_a_worker_on_a_gpu_takes_few_threads_to_tokenize(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "usable", lambda: 64)
    assert placement.tokenizer_threads(1, GPU) == placement.GPU_TOKENIZER_THREADS
    assert placement.tokenizer_threads(1, CPU) == 64
    assert placement.tokenizer_threads(32, GPU) == 2


@pytest.mark.parametrize(
    ("policy", "threads", "told"),
    [(None, 2, True), ("active", 2, True), ("passive", 2, False), ("PASSIVE", 2, False), (None, 1, False)],
)
def test_threads_that_spin_are_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, policy: str | None, threads: int, told: bool
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    with caplog.at_level("INFO"):
        placement.set_threads(threads, 1, CPU)
    assert (placement.SPINNING in caplog.messages) == told


def test_servers_of_the_scripts_have_threads_that_sleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(tmp_path, CONFIG, tmp_path, [])
    server.temporary = str(tmp_path)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert server._environment("java")["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert server._environment("java")["OMP_WAIT_POLICY"] == "active"


def test_a_loaded_text_encoder_tokenizes_in_its_share(minilm_folder: Path) -> None:
    """In a process of its own, for the library asks once: what is set after its first run comes too late."""
    child = """
import os, sys, torch
from pathlib import Path
from archive.trial_run import TrialContext
from handlers import cpus, loading
from handlers.text_encoder import TextEncoder
from handlers.texts.payloads import Text

cpus.usable = lambda: 9
encoder = TextEncoder()
section = {"engine": "torch_eager", "precision": "fp32", "device": "cpu", "maxTokens": 32}
context = TrialContext(Path(sys.argv[1]), "one", {"handler": section, "maxWorkers": 3})
context.system_properties[loading.PARITY_GATE] = True  # no comparison while loading, which would tokenize already
encoder.initialize(context)
before = len(os.listdir("/proc/self/task"))
encoder.tokenizer.encode([Text("a", None, False)] * 40)
print(torch.get_num_threads(), len(os.listdir("/proc/self/task")) - before)
"""
    # transformers' pipelines set TOKENIZERS_PARALLELISM in the process that runs the tests.
    decided = ("_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    clean = {name: value for name, value in os.environ.items() if not name.endswith(decided)}
    command = [sys.executable, "-c", child, str(minilm_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT, env=clean)
    assert done.stdout.split() == ["3", "3"]


def test_device_name_says_what_the_cpu_is_and_how_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    name = placement.device_name(CPU)
    assert name.startswith("cpu (")
    assert name.endswith("3 threads)")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Example GPU")
    assert placement.device_name(GPU) == "cuda:0 (Example GPU)"


def test_how_a_gpu_is_shared_is_seen_by_mps_own_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    gpu = torch.device("cuda", 0)
    assert placement.sharing(gpu) == "time slices"
    (tmp_path / "control").touch()
    assert placement.sharing(gpu) == "CUDA MPS"
    assert placement.sharing(torch.device("cpu")) is None
