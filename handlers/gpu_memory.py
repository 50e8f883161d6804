"""What a process that serves one model sets before it uses an NVIDIA GPU, so that more of them fit on the GPU."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# PyTorch and cuBLAS read these when CUDA is first used. Sources: docs.pytorch.org/docs/stable/notes/cuda.html,
# docs.nvidia.com/cuda/cublas.
WORKSPACE, WORKSPACE_8_MIB = "CUBLAS_WORKSPACE_CONFIG", ":4096:2:16:8"
ALLOCATOR, GROWING = "PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"
ALLOCATOR_SINCE_2_9 = "PYTORCH_ALLOC_CONF"


def spare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have CUDA's libraries take less GPU memory in this process, unless `environment` says how much already.

    cuBLAS gets a workspace of 8 MiB per stream; on Hopper it would take 32 MiB, and more beside it. PyTorch's memory
    grows in one piece, so tensors of a new shape find room where others were freed. A worker of ResNet-101 took 1,286
    MiB before and 1,183 after, one of BERT-Large 1,739 and 1,632 (`gpu_mib_per_worker` in docs/benchmarks, H100 and
    H200).
    """
    environment.setdefault(WORKSPACE, WORKSPACE_8_MIB)
    if ALLOCATOR_SINCE_2_9 not in environment:
        environment.setdefault(ALLOCATOR, GROWING)
