"""Sentence encoders of fairseq (RoBERTa, XLM-R): from a model's state_dict to a FusedEncoder, and back.

fairseq itself is not needed. Embeddings, their LayerNorm and the heads stay with the caller: a FusedEncoder takes
what the embeddings return. `run_padded` runs it on a padded batch.
"""

from __future__ import annotations

import torch

from handlers.encoder.errors import UnsupportedError
from handlers.encoder.fused import FusedEncoder
from handlers.encoder.layouts import FAIRSEQ, FAIRSEQ_STACKED
from handlers.encoder.weights import Tensors, build_encoder, fused_state, vanilla_state
from handlers.misfits import listed

FIRST_LAYER = "layers.0.fc1.weight"


def encoder_from_fairseq(
    state_dict: Tensors,
    heads: int,
    activation: str = "gelu",
    norm_first: bool = False,
    eps: float = 1e-5,
    prefix: str | None = None,
) -> FusedEncoder:
    """Build a FusedEncoder from the state_dict of a whole fairseq model.

    Args:
        state_dict: the model's tensors. The encoder takes them over, without a copy if it can.
        heads: the model's encoder_attention_heads.
        activation: its activation_fn, as a key of ops.ACTIVATIONS; fairseq's gelu_accurate is gelu_fast here.
        norm_first: its encoder_normalize_before.
        eps: added to the variance in every LayerNorm.
        prefix: how the names of the encoder's tensors begin, such as "encoder.sentence_encoder.". None finds it.

    Returns:
        The encoder in eval mode, in the dtype and on the device of the tensors.

    Raises:
        ValueError: tensors are missing, unexpected or misshapen, by name, or there is not exactly one encoder.
    """
    prefix = _find_prefix(state_dict) if prefix is None else prefix
    own = {
        name.removeprefix(prefix): tensor.detach()
        for name, tensor in state_dict.items()
        if name.startswith((f"{prefix}layers.", f"{prefix}layer_norm."))
    }
    if not norm_first and any(name.startswith("layer_norm.") for name in own):
        raise ValueError(f"{prefix}layer_norm follows the last layer, which only norm_first=True has")
    stacked = "layers.0.self_attn.in_proj_weight" in own
    state = fused_state(own, FAIRSEQ_STACKED if stacked else FAIRSEQ)
    return build_encoder(state, heads=heads, activation=activation, eps=eps, norm_first=norm_first)


def fairseq_state(
    encoder: FusedEncoder, prefix: str = "encoder.sentence_encoder.", stacked: bool = False
) -> dict[str, torch.Tensor]:
    """Return the encoder's part of a fairseq model's state_dict.

    Args:
        encoder: the encoder.
        prefix: how the names begin.
        stacked: True for one in_proj_weight per layer, as in fairseq before 0.9.
    """
    state = vanilla_state(encoder.state_dict(), FAIRSEQ_STACKED if stacked else FAIRSEQ)
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def _find_prefix(state_dict: Tensors) -> str:
    names = [name for name in state_dict if name == FIRST_LAYER or name.endswith(f".{FIRST_LAYER}")]
    found = [name.removesuffix(FIRST_LAYER) for name in names]
    if len(found) != 1:
        stacks = (
            f"several stacks of layers, {listed(map(repr, found))}" if found else f"no name ends with {FIRST_LAYER}"
        )
        raise ValueError(f"{stacks}; wanted: one encoder, or prefix= to say which and where it is")
    if found[0].endswith("decoder."):
        raise UnsupportedError(
            f"the only stack of layers is {found[0]!r}, and a decoder's tokens attend to earlier ones only; "
            "prefix= says that it is an encoder all the same"
        )
    return found[0]
