"""What every engine offers, what it is given, and what it gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handlers.engines.plans import default_cache
from handlers.tasks.shared.pooling import Pooling
from handlers.tasks.shared.sparse_pooling import SparsePooling

# The type of an engine's inputs and outputs in each precision.
DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float16,  # linear layers multiply in fp8; everything else stays in fp16
}


@dataclass(frozen=True)
class EngineSpec:
    """A model as it lies in an unpacked archive, and how it is to run.

    Args:
        kind: "image-classifier" (image encoders too) or "text-encoder".
        model_dir: the folder of config.json and model.safetensors.
        device: where the model runs.
        precision: a key of DTYPES.
        task: one of settings.TEXT_TASKS for a text encoder; "embeddings" for an image encoder, "" for a classifier.
        image_size: side of the square images, in pixels; 0 if the network's inputs are not squares of one size.
        batch_size: the most images that run at once.
        buckets: batch sizes that a TensorRT plan is built for, ascending.
        on_mismatch: "rebuild" a plan that was built for another machine, or "refuse" to load it.
        plan_cache: folder of plans built on this machine, and of what was measured there.
        max_tokens: the most tokens of one text, special tokens counted.
        token_budget: the most tokens that run at once; 0 leaves that to the engine.
        pooling: how token vectors become an embedding. Engines ignore it. The comparison with fp32 uses it.
        sparse_pooling: how engines make a sparse embedding of a text's logits, for the task "sparse-embeddings".
    """

    kind: str
    model_dir: Path
    device: torch.device
    precision: str
    task: str = ""
    image_size: int = 224
    batch_size: int = 1
    buckets: tuple[int, ...] = (1, 8, 64)
    on_mismatch: str = "rebuild"
    plan_cache: Path = field(default_factory=default_cache)
    max_tokens: int = 512
    token_budget: int = 0
    pooling: Pooling = field(default_factory=Pooling)
    sparse_pooling: SparsePooling = field(default_factory=SparsePooling)

    @property
    def dtype(self) -> torch.dtype:
        """The type of inputs and outputs."""
        return DTYPES[self.precision]


@dataclass(frozen=True)
class LoadedEngine:
    """A network that is ready to run.

    Args:
        run: the network. Outputs are on the spec's device, in the spec's dtype. T: tokens of all texts; N: inputs;
            S: image size; M: positions that the batch selects.
            An image classifier takes (N, 3, S, S) normalised pixels in the spec's dtype and returns logits
            (N, classes); an image encoder returns pooled features (N, K). If S is 0, their inputs are those of
            engines/image_inputs.py.
            A text encoder takes a handlers.encoder.packing.TokenBatch. It returns, by task: "embeddings": token
            vectors (T, hidden); "sequence-classification": logits (N, labels); "token-classification": logits
            (T, labels); "fill-mask": logits (M, vocabulary); "sparse-embeddings": pooled logits (N, vocabulary), in
            fp32.
        details: how it runs, for the log and the model's description.
        pads: True if a text encoder pads each text to the longest of its batch, and so computes padding as well.
        token_budget: the number of tokens per run at which a text encoder is fastest. Padding counts if it pads.
        layers: how the network runs so that its modules are called one by one, without graphs, and the network; None
            if it cannot. Only the search for a layer whose output is not finite uses it.
    """

    run: Callable[[Any], torch.Tensor]
    details: dict[str, object]
    pads: bool = True
    token_budget: int = 16_384
    layers: tuple[Callable[[Any], torch.Tensor], nn.Module] | None = None


class Engine(ABC):
    """One way to run networks. Each engine file defines a subclass, and offers one object of it as ENGINE."""

    @property
    @abstractmethod
    def kinds(self) -> tuple[str, ...]:
        """The kinds of model that it runs: "image-classifier", "text-encoder" or both."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Engines of a higher rank are tried first by "auto"."""

    @abstractmethod
    def why_not_here(self, spec: EngineSpec) -> str | None:
        """Return why it cannot run `spec` on this machine, or None. Includes what `why_never` says."""

    @abstractmethod
    def load(self, spec: EngineSpec) -> LoadedEngine:
        """Load the model. Raises ValueError, with what to do, if that is not possible."""

    def why_never(self, spec: EngineSpec) -> str | None:
        """Return why it cannot run `spec` on any machine, or None. Packaging refuses such an archive.

        An engine that takes only square images of one size returns that reason if image_size is 0.
        """
        return None

    def why_auto_skips(self, spec: EngineSpec) -> str | None:
        """Return why "auto" leaves it out although it can run, or None.

        For an engine that would take minutes to load, or that lacks an optional package. The reason goes into the
        log and the model's description. The engine can still be asked for by name.
        """
        return None

    def why_auto_refuses(self, spec: EngineSpec) -> str | None:
        """Return why "auto" must raise an error instead of choosing any engine, or None."""
        return None
