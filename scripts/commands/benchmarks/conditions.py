"""Under what conditions a benchmark ran."""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
from importlib import import_module
from pathlib import Path

import torch

from handlers import placement
from handlers.selection.results_cache import version

ROOT = Path(__file__).parents[3]


def conditions(device: torch.device, commit: str | None = None) -> dict[str, object]:
    """Versions and names, None where there is none. commit: instead of what git says of this checkout."""
    cuda = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "gpu": gpu_name(device),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tensorrt": _tensorrt_version(),
        **({} if cuda else {"cpu": placement.device_name(device), "onnxruntime": version("onnxruntime")}),
        "python": platform.python_version(),
        "commit": commit or _said("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
    }


def gpu_name(device: torch.device) -> str:
    """As the driver names it; "cpu" where that is what runs."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def slug(gpu: str) -> str:
    """A GPU's name for file names: "NVIDIA H200" -> "h200"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().replace("nvidia", "")).strip("-")


def _said(*command: str) -> str | None:
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    return lines[0] if lines else None


def _tensorrt_version() -> str | None:
    try:
        return str(import_module("tensorrt").__version__)
    except (ImportError, OSError):  # not installed, or its libraries do not load
        return None
