"""Chooses the device, the precision and the threads of a worker, each with the reason for the log."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from handlers import cpus, mps

logger = logging.getLogger(__name__)

GPU_TOKENIZER_THREADS = 4
SPINNING = (
    "PyTorch's threads spin while they wait for work, which slows down whatever shares the CPUs with them: start the "
    "server with OMP_WAIT_POLICY=passive in its environment"
)


def choose_device(asked: str, gpu_id: int | None, host: str = "TorchServe") -> tuple[torch.device, str]:
    """The device and why it was chosen.

    Args:
        asked: the setting `device`: "auto", "cuda" or "cpu".
        gpu_id: index of the GPU that TorchServe assigned to this worker; None if it assigned none.
        host: what assigned it, for the reason.

    Raises ValueError if "cuda" is asked for and PyTorch sees no GPU.
    """
    if asked == "cpu":
        return torch.device("cpu"), "asked for"
    if torch.cuda.is_available() and (gpu_id is not None or asked == "cuda"):
        device = torch.device("cuda", int(gpu_id or 0))
        return device, "asked for" if asked == "cuda" else f"{host} assigned this GPU"
    if asked == "cuda":
        raise ValueError("device: cuda is asked for, and PyTorch sees no GPU; device: auto would use the CPU")
    if torch.cuda.is_available():
        return torch.device("cpu"), f"{host} assigned no GPU to this worker"
    return torch.device("cpu"), "PyTorch sees no GPU"


def choose_precision(asked: str, device: torch.device, parity: Mapping[str, Any]) -> tuple[str, str]:
    """The precision and why it was chosen.

    Args:
        asked: the setting `precision`: "auto" or a precision.
        device: of the network.
        parity: the results of the archive's parity gate, by precision.
    """
    if asked != "auto":
        return asked, "asked for"
    wanted = "fp16" if device.type == "cuda" else "bf16"
    if wanted == "bf16" and not cpu_has_bf16():
        return "fp32", "this CPU has no native bf16"
    result = parity.get(wanted)
    if result is None:
        return "fp32", f"the archive holds no parity figures for {wanted}"
    if not result.get("passed"):
        return "fp32", f"{wanted} did not pass the parity gate when the archive was packaged"
    engine = f" with engine {result['engine']}" if result.get("engine") else ""
    gate_device = result.get("device", "an unnamed device")
    return wanted, f"passed the parity gate against fp32, measured on {gate_device}{engine}"


def precisions(asked: str, device: torch.device, parity: Mapping[str, Any]) -> dict[str, str]:
    """The precisions that may serve, in order of preference, each with the reason.

    That is what `choose_precision` returns. For "auto" on a CPU with bf16 it is bf16 and fp32, because bf16 is not
    always faster there: the engines measure which one serves, unless the engine that was asked for runs only one.

    Args: as of `choose_precision`.
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
    """The device with its product name: "cuda:0 (NVIDIA H200)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"cpu ({cpu_name()}, {threads} thread{'s' if threads > 1 else ''})"


def sharing(device: torch.device) -> str | None:
    """How processes share a GPU: by "CUDA MPS" kernels run side by side, by "time slices" in turns; None on a CPU."""
    if device.type != "cuda":
        return None
    return "CUDA MPS" if mps.daemon_runs() else "time slices"


def set_threads(asked: int, workers: int, device: torch.device) -> None:
    """Limit this worker's threads to its share of the CPUs.

    PyTorch gets `cpu_threads`. The tokenizers read RAYON_NUM_THREADS when they first run.

    Args: as of `cpu_threads`.
    """
    torch.set_num_threads(cpu_threads(asked, workers, device))
    if torch.get_num_threads() > 1 and os.environ.get(cpus.WAIT_POLICY, "").lower() != cpus.PATIENT:
        logger.info(SPINNING)
    os.environ.setdefault("RAYON_NUM_THREADS", str(tokenizer_threads(workers, device)))


def tokenizer_threads(workers: int, device: torch.device) -> int:
    """Threads of the tokenizers in one worker: its share of the CPUs, and on a GPU GPU_TOKENIZER_THREADS at most.

    Workers on a GPU are often scaled to many more than the archive starts, and each would take all CPUs.

    Args: as of `cpu_threads`.
    """
    share = cpus.share(workers)
    return min(share, GPU_TOKENIZER_THREADS) if device.type == "cuda" else share


def cpu_threads(asked: int, workers: int, device: torch.device) -> int:
    """PyTorch's threads in one worker: as asked, else as OMP_NUM_THREADS says, else the worker's share of the CPUs.

    A worker on a GPU gets one: it computes next to nothing on the CPU, and OpenMP's other threads would spin. Four
    workers for BERT on one H200 answered 1,409 requests per second with one thread per core, and 12,268 with one.

    Args:
        asked: the setting `cpuThreads`; 0 if it leaves the choice to this function.
        workers: of the model, which share the CPUs.
        device: of the network.
    """
    omp_threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # a list's first number is for outermost loops
    if asked or (omp_threads.isdecimal() and int(omp_threads)):
        return asked or int(omp_threads)
    return 1 if device.type == "cuda" else cpus.share(workers)


def cpu_name() -> str:
    """The CPU's model by /proc/cpuinfo, or "unnamed"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unnamed"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unnamed")
