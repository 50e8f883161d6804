"""Whether NVIDIA's MPS runs here, which lets the kernels of several processes run side by side on a GPU.

Source: docs.nvidia.com/deploy/mps, "Environment Variables".
"""

from __future__ import annotations

import os
from pathlib import Path

PIPES = "CUDA_MPS_PIPE_DIRECTORY"
DEFAULT_PIPES = Path("/tmp/nvidia-mps")  # noqa: S108 - CUDA's own default


def daemon_runs() -> bool:
    """Return whether there is a control daemon where this process's CUDA looks for one."""
    return (Path(os.environ.get(PIPES, DEFAULT_PIPES)) / "control").exists()
