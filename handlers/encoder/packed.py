"""A transformers model that runs packed from its embeddings to its head: no padding token is computed anywhere.

The encoder is swapped (handlers.encoder.swap). The head stays transformers' own: it gets only the rows that it reads,
in the shape of a padded batch.

Shapes: T tokens of all sequences together, N sequences, M selected tokens, H hidden size, E embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from handlers.encoder.errors import UnsupportedError
from handlers.encoder.fp8 import Calibration, Fp8Encoder
from handlers.encoder.fused import FusedEncoder
from handlers.encoder.ops import EncoderOps, Norm, Positions, Segments, TorchEncoderOps, launch_context
from handlers.encoder.packing import TokenBatch
from handlers.encoder.swap import fused_encoder, swap_encoder
from handlers.misfits import listed

SAMPLE_LENGTH = 7
TOLERANCE = 1e-5

REQUIRED = {"word_embeddings.weight", "position_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"}
OPTIONAL = {"token_type_embeddings.weight"}

Rows = Literal["text", "token", "mask"]
ROWS: dict[str, Rows] = {
    "embeddings": "token",
    "sequence-classification": "text",
    "token-classification": "token",
    "fill-mask": "mask",
}


class PackedEmbeddings(nn.Module):
    """Word, token type and position embeddings of packed tokens, with their LayerNorm.

    Args:
        vanilla: the `embeddings` of a transformers model.
        projection: a Linear from E to H after the LayerNorm, as ELECTRA has it, or None.
        positions: how `vanilla` counts positions, if that is known. None finds it out by running `vanilla`.

    Raises:
        UnsupportedError: `vanilla` computes something else.
    """

    def __init__(self, vanilla: Any, projection: nn.Module | None, positions: Positions | None = None) -> None:
        super().__init__()
        self.word_embeddings = vanilla.word_embeddings
        self.token_type_embeddings = getattr(vanilla, "token_type_embeddings", None)
        self.position_embeddings = vanilla.position_embeddings
        self.norm = vanilla.LayerNorm
        self.projection = projection
        self.positions = _find_positions(vanilla, self) if positions is None else positions

    def forward(
        self, ids: torch.Tensor, types: torch.Tensor, positions: torch.Tensor, ops: EncoderOps
    ) -> torch.Tensor:
        """Embed packed tokens.

        Args:
            ids: (T,) int64 token ids.
            types: (T,) int64 token type ids.
            positions: (T,) int64 position ids.
            ops: what computes.

        Returns:
            (T, H).
        """
        hidden = self.embed(ids, types, positions, ops)  # (T, E)
        return hidden if self.projection is None else self.projection(hidden)

    def embed(self, ids: torch.Tensor, types: torch.Tensor, positions: torch.Tensor, ops: EncoderOps) -> torch.Tensor:
        """Return the normalised sum of the embeddings, before the projection: (T,) each -> (T, E)."""
        token_types = () if self.token_type_embeddings is None else ((self.token_type_embeddings.weight, types),)
        words, position_rows = (self.word_embeddings.weight, ids), (self.position_embeddings.weight, positions)
        tables, indices = zip(words, *token_types, position_rows, strict=True)
        return ops.embed_norm(tables, indices, Norm(self.norm.weight, self.norm.bias, self.norm.eps))


def check_embeddings(network: Any) -> None:
    """Check the embeddings as far as that is possible without their weights.

    Args:
        network: a transformers model, on meta maybe.

    Raises:
        UnsupportedError: the embeddings have more or less than BERT's.
    """
    vanilla = getattr(network.base_model, "embeddings", None)
    if not isinstance(vanilla, nn.Module):
        raise UnsupportedError(f"{type(network).__name__} has no embeddings where BERT has them")
    wrong = ({name for name, _ in vanilla.named_parameters()} - OPTIONAL) ^ REQUIRED
    if wrong:
        raise UnsupportedError(
            f"{type(vanilla).__name__} has other parameters than BERT's embeddings: {listed(sorted(wrong))}"
        )


def _find_positions(vanilla: Any, packed: PackedEmbeddings) -> Positions:
    """Find how `vanilla` counts positions, by its output for a sample that has the padding token in it.

    Raises UnsupportedError if no known way gives that output: these embeddings are more than tables and a LayerNorm.
    """
    padding = int(vanilla.word_embeddings.padding_idx or 0)
    ids = torch.arange(SAMPLE_LENGTH) + padding - SAMPLE_LENGTH // 2
    ids = ids % vanilla.word_embeddings.num_embeddings  # (S,)
    offsets, ops = torch.tensor([0, SAMPLE_LENGTH], dtype=torch.int32), TorchEncoderOps()
    with torch.no_grad():
        wanted = vanilla.eval()(input_ids=ids.unsqueeze(0)).squeeze(0)  # (S, E)
        for positions in (Positions(), Positions(padding + 1, padding)):
            found = packed.embed(ids, torch.zeros_like(ids), positions.of(ids, offsets), ops)  # (S, E)
            if torch.allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE):
                return positions
    raise UnsupportedError(f"{type(vanilla).__name__} is more than a sum of word, token type and position embeddings")


class _PrecomputedBase(nn.Module):
    """Stands in for the base model under a head, and returns hidden states that were computed packed."""

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
    """A transformers model for a task, its encoder swapped, that runs on packed tokens.

        model = PackedModel(AutoModel.from_pretrained(folder).eval(), "embeddings").to("cuda", torch.float16)
        hidden = model.hidden(batch.input_ids, batch.token_type_ids, batch.segments)    # (T, H)

    Args:
        network: the model in eval mode, in fp32, on the CPU. It is taken apart and is of no use afterwards. Move and
            cast the PackedModel instead.
        task: "embeddings", "sequence-classification", "token-classification" or "fill-mask"; any other name if `rows`
            is given.
        rows: what the head gives one row of logits for: each "text", of which it reads the first token; each "token";
            or each "mask", which the batch selects. None takes it from `task`.

    Raises:
        ValueError: `task` is unknown, and `rows` is None.
        UnsupportedError: the fused encoder would not compute the model exactly.
    """

    head: Any

    def __init__(self, network: Any, task: str, rows: Rows | None = None) -> None:
        super().__init__()
        rows = _rows_of(task) if rows is None else rows
        check_embeddings(network)
        base = network.base_model
        embeddings = PackedEmbeddings(base.embeddings, getattr(base, "embeddings_project", None))
        swap_encoder(network)
        self._assemble(embeddings, fused_encoder(network), getattr(base, "pooler", None), task, rows)
        if network is not base:
            setattr(network, network.base_model_prefix, self.base)
            self.head = network

    @classmethod
    def of_parts(
        cls, embeddings: PackedEmbeddings, encoder: FusedEncoder, task: str, rows: Rows | None = None
    ) -> PackedModel:
        """Build a model without a head from its parts, which are not copied.

        Args:
            embeddings, encoder: on one device, in one dtype.
            task, rows: as of the class.

        Raises:
            ValueError: `task` is unknown, and `rows` is None.
        """
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._assemble(embeddings, encoder, None, task, _rows_of(task) if rows is None else rows)
        return model

    def _assemble(
        self, embeddings: PackedEmbeddings, encoder: FusedEncoder, pooler: nn.Module | None, task: str, rows: Rows
    ) -> None:
        self.rows = rows
        self.embeddings = embeddings
        self.encoder: FusedEncoder | Fp8Encoder = encoder
        self.base = _PrecomputedBase(pooler)
        self.task = task
        self.head = None

    def calibrate_fp8(self, batches: Iterable[TokenBatch]) -> list[dict[str, float]]:
        """Run batches and record the largest magnitude that each linear layer reads.

        Returns:
            What `to_fp8` takes.

        Raises:
            ValueError: the model is in fp8 already.
        """
        encoder, calibration = self._unquantised(), Calibration()
        before, encoder.ops = encoder.ops, calibration
        for batch in batches:
            self.hidden(batch.input_ids, batch.token_type_ids, batch.segments)
        encoder.ops = before
        return calibration.of(encoder)

    def to_fp8(self, amax: list[dict[str, float]]) -> None:
        """Quantise the encoder's linear layers. Move and cast the model before, not after.

        Args:
            amax: what `calibrate_fp8` returned.

        Raises:
            ValueError: the model is in fp8 already, is pre-norm, or has another number of layers.
        """
        self.encoder = Fp8Encoder(self._unquantised(), amax)

    def _unquantised(self) -> FusedEncoder:
        if isinstance(self.encoder, Fp8Encoder):
            raise ValueError("this model is in fp8 already")
        return self.encoder

    def hidden(self, ids: torch.Tensor, types: torch.Tensor, segments: Segments) -> torch.Tensor:
        """Run embeddings and encoder.

        Args:
            ids: (T,) int64 token ids.
            types: (T,) int64 token type ids.
            segments: where each sequence begins and ends.

        Returns:
            (T, H), the hidden states of the last layer. Rows of no sequence are undefined.
        """
        ops = self.encoder.ops
        with launch_context(ids, ops):
            segments, positions = ops.prepare_packed(ids, segments, self.embeddings.positions)
            hidden = self.embeddings(ids, types, positions, ops)  # (T, H)
            encoded: torch.Tensor = self.encoder(hidden, segments)
        return encoded

    def outputs(self, hidden: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        """Run the task's head.

        Args:
            hidden: (T, H), what `hidden` returned for `batch`.
            batch: the batch.

        Returns:
            `hidden` itself if the model has no head. Logits (N, labels) if the head's rows are texts. Else logits
            (M, labels or vocabulary), or (T, ...) if the batch selects no tokens.
        """
        if self.head is None:
            return hidden
        if self.rows == "text":
            rows = hidden[batch.cu_seqlens[:-1].long()].unsqueeze(1)  # (N, 1, H): heads read the first token
        else:
            rows = (hidden if batch.selected is None else hidden[batch.selected]).unsqueeze(0)  # (1, T or M, H)
        self.base.hidden = rows
        logits: torch.Tensor = self.head().logits
        self.base.hidden = None
        return logits if self.rows == "text" else logits.squeeze(0)


def _rows_of(task: str) -> Rows:
    """Return what a known task's head gives one row of logits for. Raises ValueError."""
    if task not in ROWS:
        raise ValueError(f"the task is {task!r}; wanted: one of {', '.join(ROWS)}, or rows= for a task of your own")
    return ROWS[task]
