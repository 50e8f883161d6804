"""What sentence-transformers' folders put behind pooling: Dense, LayerNorm and Normalize modules.

They run in PyTorch in fp32, behind the engine and on its device, so that no engine or precision changes them. They
are a thousandth of the work.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

FILE = "embedding_head.safetensors"  # in an archive: the weights, and the steps as metadata
DENSE, LAYER_NORM, NORMALIZE = "Dense", "LayerNorm", "Normalize"
# Activation functions of a Dense module, by the name of PyTorch's class. None has weights or needs arguments.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    made.__name__: made
    for made in (
        *(nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.ReLU6),
        *(nn.LeakyReLU, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid),
        *(nn.Tanhshrink, nn.Softshrink, nn.Hardshrink),
    )
}


@dataclass(frozen=True)
class Step:
    """One module.

    Attributes:
        kind: DENSE, LAYER_NORM or NORMALIZE.
        size_in, size_out: numbers of an embedding before and after it.
        bias: of a Dense module, whether it adds one.
        activation: of a Dense module, a key of ACTIVATIONS.
        residual: of a Dense module, whether its input is added to its output, projected if the sizes differ.
    """

    kind: str
    size_in: int
    size_out: int
    bias: bool = True
    activation: str = "Identity"
    residual: bool = False

    def __str__(self) -> str:
        if self.kind != DENSE:
            return f"{self.kind} {self.size_out}"
        parts = [self.activation, *([] if self.bias else ["no bias"]), *(["residual"] if self.residual else [])]
        return f"{self.kind} {self.size_in} -> {self.size_out}, {', '.join(parts)}"


class Dense(nn.Module):
    """A linear layer and its activation. Weights have sentence-transformers' names."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.linear = nn.Linear(step.size_in, step.size_out, bias=step.bias)
        self.activation = ACTIVATIONS[step.activation]()
        self.adds_input = step.residual
        if step.residual and step.size_in != step.size_out:
            self.residual = nn.Linear(step.size_in, step.size_out, bias=False)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return (N, size_out) for (N, size_in)."""
        found: torch.Tensor = self.activation(self.linear(embeddings))
        if not self.adds_input:
            return found
        return found + (self.residual(embeddings) if hasattr(self, "residual") else embeddings)


class LayerNorm(nn.Module):
    """A layer normalisation. Weights have sentence-transformers' names."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(step.size_in)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return (N, size) for (N, size)."""
        found: torch.Tensor = self.norm(embeddings)
        return found


class Normalize(nn.Module):
    """Scales embeddings to length 1, between two other modules."""

    def __init__(self, step: Step) -> None:
        super().__init__()

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return (N, size) for (N, size)."""
        return F.normalize(embeddings, dim=1)


KINDS: dict[str, type[Dense] | type[LayerNorm] | type[Normalize]] = {
    DENSE: Dense,
    LAYER_NORM: LayerNorm,
    NORMALIZE: Normalize,
}


class EmbeddingHead(nn.Module):
    """Modules in their order: (N, size_in) pooled vectors -> (N, size_out) embeddings, fp32.

    Weights are made on the CPU, and without values until a state dict is loaded.

    Args:
        steps: one or more of them.

    Raises:
        ValueError: A step has an unknown kind or activation, or does not take what the step before it gives.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        _check(steps)
        self.steps = tuple(steps)
        self.layers = nn.ModuleList(KINDS[step.kind](step) for step in steps)
        self.requires_grad_(False)
        self.device = torch.device("cpu")

    @property
    def size_in(self) -> int:
        """Numbers of a pooled vector."""
        return self.steps[0].size_in

    @property
    def size_out(self) -> int:
        """Numbers of an embedding."""
        return self.steps[-1].size_out

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, on the device of the pooled vectors."""
        if embeddings.device != self.device:
            self.to(embeddings.device)
            self.device = embeddings.device
        for layer in self.layers:
            embeddings = layer(embeddings)
        return embeddings


def write(head: EmbeddingHead, folder: Path) -> None:
    """Write FILE into an archive's folder."""
    steps = json.dumps([dataclasses.asdict(step) for step in head.steps])
    tensors = {name: tensor.contiguous() for name, tensor in head.layers.state_dict().items()}
    save_file(tensors, folder / FILE, {"steps": steps})


def read(folder: Path) -> EmbeddingHead | None:
    """Return the head that an archive's folder holds, in fp32 on the CPU; None if it holds none."""
    path = folder / FILE
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        steps = [Step(**step) for step in json.loads(file.metadata()["steps"])]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    head = EmbeddingHead(steps)
    head.layers.load_state_dict(tensors)
    return head.eval()


def _check(steps: Sequence[Step]) -> None:
    """Raises ValueError."""
    size = steps[0].size_in if steps else 0
    for number, step in enumerate(steps, 1):
        what = f"module {number} behind the pooling ({step})"
        if step.kind not in KINDS or step.activation not in ACTIVATIONS:
            raise ValueError(f"{what} is not known; wanted: {', '.join(KINDS)}, with {', '.join(ACTIVATIONS)}")
        if step.size_in != size:
            raise ValueError(f"{what} takes embeddings of {step.size_in} numbers, and gets {size}")
        size = step.size_out
