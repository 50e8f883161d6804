"""Where a model runs and in which precision, each with the reason: nothing is chosen silently."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from handlers import cpus


def choose_device(asked: str, gpu_id: int | None) -> tuple[torch.device, str]:
    """The device for "auto", "cuda" or "cpu", and why. gpu_id is what TorchServe assigned, None without a GPU.

    Raises ValueError where a GPU is asked for and none is there.
    """
    if asked == "cpu":
        return torch.device("cpu"), "asked for"
    if torch.cuda.is_available() and (gpu_id is not None or asked == "cuda"):
        device = torch.device("cuda", int(gpu_id or 0))
        return device, "asked for" if asked == "cuda" else "TorchServe assigned this GPU"
    if asked == "cuda":
        raise ValueError("device: cuda is asked for, and PyTorch sees no GPU; device: auto would use the CPU")
    if torch.cuda.is_available():
        return torch.device("cpu"), "TorchServe assigned no GPU to this worker"
    return torch.device("cpu"), "PyTorch sees no GPU"


def choose_precision(asked: str, device: torch.device, parity: Mapping[str, Any]) -> tuple[str, str]:
    """The precision for "auto" or a name, and why. parity: the archive's figures by precision."""
    if asked != "auto":
        return asked, "asked for"
    wanted = "fp16" if device.type == "cuda" else "bf16"
    if wanted == "bf16" and not cpu_has_bf16():
        return "fp32", "this CPU has no native bf16"
    figures = parity.get(wanted)
    if figures is None:
        return "fp32", f"the archive holds no parity figures for {wanted}"
    if not figures.get("passed"):
        return "fp32", f"{wanted} did not pass the parity gate when the archive was packaged"
    by = f" with engine {figures['engine']}" if figures.get("engine") else ""
    where = figures.get("device", "an unnamed device")
    return wanted, f"passed the parity gate against fp32, measured on {where}{by}"


def precisions(asked: str, device: torch.device, parity: Mapping[str, Any]) -> dict[str, str]:
    """What `choose_precision` says, and behind it, for "auto" on a CPU, fp32: bf16 need not be faster there.

    Which of two serves is measured, unless the engine that is asked for runs one of them alone.
    """
    precision, why = choose_precision(asked, device, parity)
    if asked != "auto" or device.type != "cpu" or precision == "fp32":
        return {precision: why}
    return {precision: why, "fp32": f"the engine that is asked for runs no {precision} here"}


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (AVX-512 BF16 or AMX)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in checks)


def device_name(device: torch.device) -> str:
    """The device with its maker's name: "cuda:0 (NVIDIA H200)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"cpu ({cpu_name()}, {threads} thread{'s' if threads > 1 else ''})"


def sharing(device: torch.device) -> str | None:
    """How a GPU is shared among processes: "CUDA MPS" runs their kernels side by side, "time slices" in turns.

    None on a CPU. Source: docs.nvidia.com/deploy/mps, "Environment Variables".
    """
    if device.type != "cuda":
        return None
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))  # noqa: S108, CUDA's own default
    return "CUDA MPS" if (pipes / "control").exists() else "time slices"


def set_threads(asked: int, workers: int, device: torch.device) -> None:
    """Let this worker use its share of the CPUs, of those that a container may use among a model's workers.

    PyTorch gets `cpu_threads`, the tokenizers (which ask for it when they first run) what RAYON_NUM_THREADS says.
    """
    torch.set_num_threads(cpu_threads(asked, workers, device))
    os.environ.setdefault("RAYON_NUM_THREADS", str(cpus.share(workers)))


def cpu_threads(asked: int, workers: int, device: torch.device) -> int:
    """PyTorch's threads in one worker: as asked, or as OMP_NUM_THREADS says, or its share of the CPUs.

    One for a worker on a GPU: it computes next to nothing on the CPU, and OpenMP's other threads would spin. Four
    workers for BERT on one H200 answered 1,409 requests per second with a thread per core, and 12,268 with one.
    """
    told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # the first of a list is for the outermost loops
    if asked or (told.isdecimal() and int(told)):
        return asked or int(told)
    return 1 if device.type == "cuda" else cpus.share(workers)


def cpu_name() -> str:
    """The CPU's model, as Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unnamed"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unnamed")
