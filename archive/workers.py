"""How many workers an archive asks TorchServe for, if packaging is not told."""

from __future__ import annotations

import torch

from handlers import cpus

# On an H200 with 16 cores, eight workers keep the GPU 78 to 96 % busy, and one keeps it 12 to 17 %
# (docs/benchmarks/serving-resnet101-workers-h200.json and serving-bert-large-workers-h200.json).
MOST = 8
CORES_PER_WORKER = 2  # TorchServe's Java and clients on the same machine need the rest
# Of a worker beside its weights, in half precision: CUDA's context, graphs, activations, kernels of the libraries.
MIB_BESIDE_WEIGHTS = 1_100
MOST_OF_MEMORY = 0.8


def default(device: str, parameters: int) -> tuple[int, str | None]:
    """Return the number of workers, and a note for people about it.

    It is for this machine: one without a GPU gives 1, and one with GPUs what fits one of them.

    Args:
        device: "auto", "cpu", or a GPU, as settings.device has it.
        parameters: of the network.
    """
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if not gpus:
        return 1, None
    each = parameters * 2 // 2**20 + MIB_BESIDE_WEIGHTS
    memory = torch.cuda.get_device_properties(0).total_memory // 2**20
    count = max(1, min(MOST, cpus.usable() // (CORES_PER_WORKER * gpus), int(memory * MOST_OF_MEMORY) // each))
    return count, _note(count, each, gpus)


def _note(count: int, each: int, gpus: int) -> str:
    several = f" For all {gpus} GPUs: --workers {gpus * count}." if gpus > 1 else ""
    return (
        f"it starts {count} worker{'s' if count > 1 else ''}, which take about {count * each / 1024:.0f} GiB of a "
        f"GPU: so many keep one GPU of this machine busy.{several} --workers N sets another number"
    )
