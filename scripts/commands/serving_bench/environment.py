"""The conditions under which a benchmark of serving runs: machine and versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch
from benchmarks.conditions import conditions
from server.errors import ServerError
from server.java import find_java_home

PACKAGES = ("torchserve", "transformers", "tokenizers", "pillow", "orjson", "numpy", "triton", "litserve")


def environment(commit: str | None) -> dict[str, Any]:
    """Names, counts and versions; None for what is not there. Makes no CUDA context in this process."""
    gpus = gpu_names()
    return {
        **conditions(torch.device("cpu"), commit),
        "gpu": gpus[0] if gpus else "cpu",
        "gpus": len(gpus),
        "driver": _smi("driver_version")[0] if gpus else None,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "kernel": platform.release(),
        "java": _java(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def gpu_names() -> list[str]:
    """As nvidia-smi names them."""
    return _smi("name")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """As Linux names it."""
    try:
        found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _smi(field: str) -> list[str]:
    try:
        command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.splitlines() if line.strip()]


def _java() -> str | None:
    try:
        command = [f"{find_java_home()}/bin/java", "-version"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    except (OSError, ServerError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "([^"]+)"', output)
    return found[1] if found else None
