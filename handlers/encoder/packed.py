"""A transformers model run packed from its embeddings to its head: no padding token is ever multiplied.

The encoder is the swapped-in one (handlers.encoder.swap). The head stays transformers' own: it is called with the
rows that it reads, laid out as the padded batch that it expects.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from handlers.encoder.fp8 import Calibration, Fp8Encoder
from handlers.encoder.fused import FusedEncoder
from handlers.encoder.ops import Norm, Operations, Positions, Segments, TorchOperations
from handlers.encoder.packing import TokenBatch
from handlers.encoder.swap import fused_encoder, swap_encoder
from handlers.encoder.weights import listed

SAMPLE_LENGTH = 7
TOLERANCE = 1e-5

PARTS = {"word_embeddings.weight", "position_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"}
KINDS = "token_type_embeddings.weight"


class PackedEmbeddings(nn.Module):
    """Word, token type and position embeddings with their LayerNorm, of packed tokens."""

    def __init__(self, vanilla: Any, projection: nn.Module | None) -> None:
        """vanilla: the `embeddings` of a transformers model. Raises ValueError where it is of another kind."""
        super().__init__()
        self.words, self.places = vanilla.word_embeddings, vanilla.position_embeddings
        self.kinds = getattr(vanilla, "token_type_embeddings", None)
        self.norm = vanilla.LayerNorm
        self.projection = projection
        self.positions = _positions(vanilla, self)

    def forward(
        self, ids: torch.Tensor, types: torch.Tensor, positions: torch.Tensor, ops: Operations
    ) -> torch.Tensor:
        """(T,) int64 token ids, token types and position ids -> (T, H)."""
        hidden = self.summed(ids, types, positions, ops)
        return hidden if self.projection is None else self.projection(hidden)

    def summed(
        self, ids: torch.Tensor, types: torch.Tensor, positions: torch.Tensor, ops: Operations
    ) -> torch.Tensor:
        """(T,) each -> (T, E), normalised; E is the embeddings' own size."""
        kinds = () if self.kinds is None else ((self.kinds.weight, types),)
        tables, rows = zip((self.words.weight, ids), *kinds, (self.places.weight, positions), strict=True)
        return ops.embed_norm(tables, rows, Norm(self.norm.weight, self.norm.bias, self.norm.eps))


def check_embeddings(network: Any) -> None:
    """As far as it can be told without weights. Raises ValueError where more or less than PARTS is there."""
    vanilla = getattr(network.base_model, "embeddings", None)
    if not isinstance(vanilla, nn.Module):
        raise ValueError(f"{type(network).__name__} has no embeddings where BERT has them")
    wrong = ({name for name, _ in vanilla.named_parameters()} - {KINDS}) ^ PARTS
    if wrong:
        raise ValueError(f"{type(vanilla).__name__} is not of BERT's kind, for {listed(sorted(wrong))}")


def _positions(vanilla: Any, packed: PackedEmbeddings) -> Positions:
    """The way of counting that gives what `vanilla` itself gives for a sample, its padding token among others.

    Raises ValueError where none does: these embeddings are more than tables and a LayerNorm.
    """
    padding = int(vanilla.word_embeddings.padding_idx or 0)
    ids = torch.arange(SAMPLE_LENGTH) + padding - SAMPLE_LENGTH // 2
    ids = ids % vanilla.word_embeddings.num_embeddings  # (S,)
    offsets, plain = torch.tensor([0, SAMPLE_LENGTH], dtype=torch.int32), TorchOperations()
    with torch.no_grad():
        wanted = vanilla.eval()(input_ids=ids.unsqueeze(0)).squeeze(0)  # (S, E)
        for way in (Positions(), Positions(padding + 1, padding)):
            found = packed.summed(ids, torch.zeros_like(ids), way.of(ids, offsets), plain)
            if torch.allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE):
                return way
    raise ValueError(f"{type(vanilla).__name__} is more than a sum of word, token type and position embeddings")


class _Handed(nn.Module):
    """In the base model's place: hands the head what was computed packed."""

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler
        self.hidden: torch.Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        pooled = None if self.pooler is None else self.pooler(self.hidden)
        hidden: Any = self.hidden  # transformers' annotations ask for a FloatTensor
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


class PackedModel(nn.Module):
    """A transformers model for a task, its encoder swapped, run on packed tokens.

    network: in eval mode, fp32, on the CPU; it is taken apart. Move and cast the packed model afterwards.
    Raises ValueError, by name, for what the fused encoder does not compute exactly.
    """

    def __init__(self, network: Any, task: str) -> None:
        super().__init__()
        check_embeddings(network)
        base = network.base_model
        self.embeddings = PackedEmbeddings(base.embeddings, getattr(base, "embeddings_project", None))
        swap_encoder(network)
        self.encoder: FusedEncoder | Fp8Encoder = fused_encoder(network)
        self.handed = _Handed(getattr(base, "pooler", None))
        self.task = task
        self.head: Any = None
        if network is not base:
            setattr(network, network.base_model_prefix, self.handed)
            self.head = network

    def largest_inputs(self, batches: Iterable[TokenBatch]) -> list[dict[str, float]]:
        """Calibrate fp8: run batches, and say what `to_fp8` takes. Raises ValueError behind `to_fp8`."""
        encoder, calibration = self._unquantised(), Calibration()
        before, encoder.operations = encoder.operations, calibration
        for batch in batches:
            self.hidden(batch.input_ids, batch.token_type_ids, batch.segments)
        encoder.operations = before
        return calibration.of(encoder)

    def to_fp8(self, largest: list[dict[str, float]]) -> None:
        """Quantise the encoder's linear layers, behind any move or cast. Raises ValueError where that cannot be."""
        self.encoder = Fp8Encoder(self._unquantised(), largest)

    def _unquantised(self) -> FusedEncoder:
        if isinstance(self.encoder, Fp8Encoder):
            raise ValueError("this model is in fp8 already")
        return self.encoder

    def hidden(self, ids: torch.Tensor, types: torch.Tensor, segments: Segments) -> torch.Tensor:
        """(T,) int64 token ids and types -> (T, H) of the last layer; rows of no sequence are undefined."""
        segments, positions = self.encoder.operations.lay_out(ids, segments, self.embeddings.positions)
        hidden = self.embeddings(ids, types, positions, self.encoder.operations)
        encoded: torch.Tensor = self.encoder(hidden, segments)
        return encoded

    def outputs(self, hidden: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        """(T, H) -> what handlers.engines.LoadedEngine.run gives for the task."""
        if self.head is None:
            return hidden
        if self.task == "sequence-classification":
            rows = hidden[batch.cu_seqlens[:-1].long()].unsqueeze(1)  # (N, 1, H): heads read the first token
        else:
            rows = (hidden if batch.selected is None else hidden[batch.selected]).unsqueeze(0)  # (1, T or M, H)
        self.handed.hidden = rows
        logits: torch.Tensor = self.head().logits
        self.handed.hidden = None
        return logits if self.task == "sequence-classification" else logits.squeeze(0)
