"""Modules that stand in for a vanilla encoder: called as it was, computed by a FusedEncoder without the padding.

Outputs at masked positions are zeros; vanilla encoders leave meaningless values there. In models of transformers the
first position of a sequence is an exception: poolers and heads read it whether it is masked or not. A sequence
without a valid token comes out as zeros.

Shapes: N sequences, S the length that they are padded to, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from handlers.encoder import state_hooks
from handlers.encoder.checks import UNSWAP, require_plain_call
from handlers.encoder.errors import UnsupportedError
from handlers.encoder.fused import FusedEncoder
from handlers.encoder.layouts import Layout
from handlers.encoder.masks import from_padding, from_transformers
from handlers.encoder.padded import run_padded
from handlers.encoder.weights import vanilla_state


class SwappedEncoder(nn.Module):
    """A FusedEncoder with the call of the vanilla encoder that it replaces.

    The vanilla modules are kept without their weights, so that they can be put back as they were; `to` and `train` do
    not reach them. The state_dict has the vanilla encoder's names and shapes: what a swapped model saves, a vanilla
    one loads, and the other way round.

    Args:
        fused: the encoder that computes.
        vanilla: the encoder that was replaced.
        layout: the names of the vanilla encoder's tensors.
    """

    reads_first = True  # whether the output at the first position is wanted even if it is masked

    def __init__(self, fused: FusedEncoder, vanilla: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.fused, self.layout = fused, layout
        self._vanilla = (vanilla,)  # in a tuple, where nn.Module does not look for submodules
        state_hooks.register(self)
        for parameter, parts in self._parameter_pairs():
            # The fused parameters stand for the vanilla ones: who freezes or counts them sees no difference.
            if not parameter.is_inference():
                parameter.requires_grad = any(part.requires_grad for part in parts)
        self._required_grad = [parameter.requires_grad for parameter in fused.parameters()]
        self.train(vanilla.training)

    def take_weights(self) -> None:
        """Free the memory of the vanilla modules; their weights live on in the fused encoder."""
        self._vanilla[0].to_empty(device="meta")

    def encode(self, hidden: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Run the fused encoder on a padded batch; see `run_padded` for arguments and result.

        Raises:
            UnsupportedError: the model is being trained, and no gradient would pass.
        """
        if self.training and torch.is_grad_enabled() and (hidden.requires_grad or self._learns()):
            raise UnsupportedError(
                f"the model is in training mode, and the fused encoder passes no gradients. {UNSWAP}"
            )
        return run_padded(self.fused, hidden, valid, self.reads_first)

    def vanilla(self) -> nn.Module:
        """Return the vanilla encoder with the weights as they are now: values, dtype, device and requires_grad."""
        encoder = self._vanilla[0]
        encoder.load_state_dict(vanilla_state(self.fused.state_dict(), self.layout), assign=True)
        for before, (parameter, parts) in zip(self._required_grad, self._parameter_pairs(), strict=True):
            for part in parts if parameter.requires_grad != before else ():
                part.requires_grad = parameter.requires_grad
        return encoder.train(self.training)

    def _learns(self) -> bool:
        """Whether a parameter wants gradients. One made in inference mode cannot say so; the vanilla ones do then."""
        return any(
            any(part.requires_grad for part in parts) if parameter.is_inference() else parameter.requires_grad
            for parameter, parts in self._parameter_pairs()
        )

    def _parameter_pairs(self) -> Iterator[tuple[nn.Parameter, list[nn.Parameter]]]:
        """Each parameter of the fused encoder, with the vanilla ones that are stacked in it."""
        config, vanilla = self.fused.config, dict(self._vanilla[0].named_parameters())
        table = self.layout.table(config.layers, config.final_norm)
        for name, parameter in self.fused.named_parameters():
            yield parameter, [vanilla[part] for part in table[name]]


class SwappedBert(SwappedEncoder):
    """Stands in for a BERT-like encoder of transformers."""

    output_class = "BaseModelOutputWithPastAndCrossAttentions"  # of transformers.modeling_outputs

    def __init__(self, fused: FusedEncoder, vanilla: nn.Module, layout: Layout, config: Any) -> None:
        from transformers import modeling_outputs  # here, for users of PyTorch or fairseq may not have it

        super().__init__(fused, vanilla, layout)
        self.config = config
        self.output = getattr(modeling_outputs, self.output_class)

    def forward(self, hidden_states: torch.Tensor, attention_mask: object = None, **options: Any) -> Any:
        """Run the encoder on embeddings.

        Args:
            hidden_states: (N, S, H), in the weights' dtype.
            attention_mask: None or a padding mask in any form that transformers passes; see masks.from_transformers.
            options: what transformers passes along; nothing that changes or adds outputs.

        Returns:
            The vanilla encoder's output class with last_hidden_state, (N, S, H).

        Raises:
            UnsupportedError: a mask that is no padding mask, or a request for attentions, hidden states, caches,
                cross-attention or gradients.
        """
        require_plain_call(self.config, options)
        valid = from_transformers(attention_mask, *hidden_states.shape[:2])  # (N, S)
        return self.output(last_hidden_state=self.encode(hidden_states, valid))


class SwappedDistilBert(SwappedBert):
    """Stands in for DistilBERT's Transformer."""

    output_class = "BaseModelOutput"


class SwappedTorch(SwappedEncoder):
    """Stands in for a torch.nn.TransformerEncoder."""

    reads_first = False  # PyTorch's own fast path leaves zeros there

    def __init__(self, fused: FusedEncoder, vanilla: nn.Module, layout: Layout, batch_first: bool) -> None:
        super().__init__(fused, vanilla, layout)
        self.batch_first = batch_first

    def forward(
        self,
        src: torch.Tensor,
        mask: torch.Tensor | None = None,
        src_key_padding_mask: torch.Tensor | None = None,
        is_causal: bool | None = None,
    ) -> torch.Tensor:
        """Run the encoder on embeddings.

        Args:
            src: (N, S, H) with batch_first, (S, N, H) without, or (S, H) for one sequence; in the weights' dtype.
            mask: must be None.
            src_key_padding_mask: (N, S), or (S,) for one sequence: bool with True for padding, or floats that are
                added to the scores.
            is_causal: must be None or False.

        Returns:
            The hidden states, in the shape of `src`.

        Raises:
            UnsupportedError: `mask`, `is_causal`, a padding mask that weighs tokens, nested tensors, or training.
            ValueError: a shape that the vanilla encoder does not take either.
        """
        if mask is not None or is_causal:
            raise UnsupportedError(
                f"mask and is_causal differ between queries; the fused encoder takes src_key_padding_mask. {UNSWAP}"
            )
        if src.is_nested:
            raise UnsupportedError(f"src is nested; wanted: 2 or 3 dimensions, the last {self.fused.config.hidden}")
        if src.dim() not in (2, 3) or src.shape[-1] != self.fused.config.hidden:
            raise ValueError(
                f"src is {tuple(src.shape)}; wanted: 2 or 3 dimensions, the last {self.fused.config.hidden}"
            )
        if src.dim() == 2:
            padding = None if src_key_padding_mask is None else src_key_padding_mask.unsqueeze(0)  # (1, S)
            return self._run(src.unsqueeze(0), padding).squeeze(0)
        if self.batch_first:
            return self._run(src, src_key_padding_mask)
        return self._run(src.transpose(0, 1), src_key_padding_mask).transpose(0, 1)

    def _run(self, hidden: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        return self.encode(hidden, from_padding(padding, *hidden.shape[:2]))
