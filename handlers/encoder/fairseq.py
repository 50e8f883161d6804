"""Sentence encoders of fairseq (RoBERTa, XLM-R): from a model's state_dict to a FusedEncoder, and back.

fairseq itself is not needed. Embeddings, their LayerNorm and the heads stay where they are: a FusedEncoder takes what
comes out of the embeddings.
"""

from __future__ import annotations

import torch

from handlers.encoder.fused import FusedEncoder
from handlers.encoder.layouts import FAIRSEQ, FAIRSEQ_STACKED
from handlers.encoder.weights import Tensors, build_encoder, fused_state, listed, vanilla_state

MARK = "layers.0.fc1.weight"


def encoder_from_fairseq(
    state_dict: Tensors,
    heads: int,
    activation: str = "gelu",
    norm_first: bool = False,
    eps: float = 1e-5,
    prefix: str | None = None,
) -> FusedEncoder:
    """The encoder of a whole model's state_dict, which the names do not tell everything about.

    heads, activation (a key of ops.ACTIVATIONS; fairseq's gelu_accurate is gelu_fast here), norm_first (fairseq's
    normalize_before): from the model's arguments. prefix: of the encoder's names, such as
    "encoder.sentence_encoder."; None finds it. The encoder takes the tensors over, uncopied where it can.
    Raises ValueError, by name, for tensors that are missing, unexpected or misshapen.
    """
    prefix = _prefix(state_dict) if prefix is None else prefix
    own = {
        name.removeprefix(prefix): tensor.detach()
        for name, tensor in state_dict.items()
        if name.startswith((f"{prefix}layers.", f"{prefix}layer_norm."))
    }
    if not norm_first and any(name.startswith("layer_norm.") for name in own):
        raise ValueError(f"{prefix}layer_norm is behind the last layer, which only norm_first=True has")
    stacked = "layers.0.self_attn.in_proj_weight" in own
    state = fused_state(own, FAIRSEQ_STACKED if stacked else FAIRSEQ)
    return build_encoder(state, heads=heads, activation=activation, eps=eps, norm_first=norm_first)


def fairseq_state(
    encoder: FusedEncoder, prefix: str = "encoder.sentence_encoder.", stacked: bool = False
) -> dict[str, torch.Tensor]:
    """The encoder's part of a fairseq model's state_dict. stacked: in_proj_weight, as before 0.9."""
    state = vanilla_state(encoder.state_dict(), FAIRSEQ_STACKED if stacked else FAIRSEQ)
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def _prefix(state_dict: Tensors) -> str:
    found = [name.removesuffix(MARK) for name in state_dict if name == MARK or name.endswith(f".{MARK}")]
    if len(found) != 1:
        stacks = f"several stacks of layers, {listed(map(repr, found))}" if found else f"no name ends with {MARK}"
        raise ValueError(f"{stacks}; wanted: one encoder, or prefix= to say which and where it is")
    if found[0].endswith("decoder."):
        raise ValueError(
            f"the only stack of layers is {found[0]!r}, and a decoder's queries see no keys behind them; "
            "prefix= says that it is an encoder all the same"
        )
    return found[0]
