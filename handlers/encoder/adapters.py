"""What stands in a vanilla encoder's place: called as it was called, computing packed with a FusedEncoder inside.

Outputs at masked positions are zeros, where vanilla encoders have values that mean nothing; but in models of
transformers not at a sequence's first position, which poolers and heads read whether it is masked or not. A sequence
without a valid token comes out as zeros. N: sequences; S: the length they are padded to; H: hidden size.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions

from handlers import kernels
from handlers.encoder.fused import FusedEncoder
from handlers.encoder.layouts import Layout
from handlers.encoder.masks import from_padding, from_transformers
from handlers.encoder.ops import Operations, Positions, Segments, TorchOperations
from handlers.encoder.weights import fused_state, vanilla_state

# With another one, transformers may pass no mask at all, and padding would be attended to.
ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
NOT_RETURNED = ("output_attentions", "output_hidden_states")
NOT_TAKEN = (
    *("encoder_hidden_states", "encoder_attention_mask", "past_key_values", "is_causal"),
    *("cu_seq_lens_q", "cu_seq_lens_k"),
)
HALF_PRECISIONS = (torch.float16, torch.bfloat16)
WAY_OUT = "unswap_encoder(model) takes the vanilla encoder back"


def segments_of(lengths: Iterable[int], device: torch.device) -> Segments:
    """Of the sequences that are not empty."""
    filled = tuple(length for length in lengths if length)
    offsets = torch.tensor([0, *accumulate(filled)], dtype=torch.int32, device=device)  # (N + 1,)
    return Segments(offsets, filled)


def run_padded(
    encoder: FusedEncoder, hidden: torch.Tensor, valid: torch.Tensor | None, first_too: bool = False
) -> torch.Tensor:
    """(N, S, H), with valid (N, S) bool or None for all -> (N, S, H), zeros where not valid.

    first_too: the first position's output is asked for, valid or not.
    """
    rows, length, _ = hidden.shape
    flat = hidden.flatten(0, 1)  # (N*S, H)
    if valid is None:
        lengths, places = [length] * rows, torch.arange(rows * length, device=hidden.device)  # (T,)
    else:
        lengths, places = valid.sum(dim=1).tolist(), valid.flatten().nonzero().squeeze(1)  # (T,)
    if not len(places):
        return torch.zeros_like(hidden)
    segments, ops = segments_of(lengths, hidden.device), operations_for(encoder, hidden)
    # Embeddings are behind us: of the layout only what attention needs.
    with torch.cuda.device(hidden.device) if hidden.is_cuda else contextlib.nullcontext():  # where Triton launches
        segments, _ = ops.lay_out(places, segments, Positions())
        # (T, H); of a copy, for the encoder may overwrite it
        packed: torch.Tensor = encoder(flat[places], segments, ops)
    found = packed.new_zeros(flat.shape).index_copy_(0, places, packed).view(hidden.shape)
    if first_too and valid is not None:
        masked = (valid.any(dim=1) & ~valid[:, 0]).nonzero().squeeze(1)
        if len(masked):
            found[masked, 0] = run_masked(encoder, hidden[masked], valid[masked])[:, 0]
    return found


def operations_for(encoder: FusedEncoder, hidden: torch.Tensor) -> Operations:
    """Triton's kernels on an NVIDIA GPU in half precision; else, and where somebody has set others, the encoder's.

    Weights of another type than what comes, as under autocast, are PyTorch's to cast.
    """
    half = hidden.dtype in HALF_PRECISIONS and next(encoder.parameters()).dtype == hidden.dtype
    if type(encoder.operations) is TorchOperations and hidden.is_cuda and half:
        return _fastest(hidden.device) or encoder.operations
    return encoder.operations


@functools.cache
def _fastest(device: torch.device) -> Operations | None:
    if kernels.why_not_on(device):
        return None
    from handlers.encoder.triton_ops import TritonOperations

    return TritonOperations(device)


def run_masked(encoder: FusedEncoder, hidden: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """As vanilla encoders do it, padding and all: (N, S, H), valid (N, S) -> (N, S, H). Slow, and for few rows."""
    segments = segments_of([hidden.shape[1]] * len(hidden), hidden.device)
    encoded: torch.Tensor = encoder(hidden.flatten(0, 1), segments, _Masked(valid))  # (N*S, H)
    return encoded.view(hidden.shape)


class _Masked(TorchOperations):
    """Of padded sequences: every query, masked or not, to the valid keys of its own."""

    def __init__(self, valid: torch.Tensor) -> None:
        self.valid = valid

    def attention(self, qkv: torch.Tensor, segments: Segments, heads: int, scale: float) -> torch.Tensor:
        query, key, value = qkv.view(*self.valid.shape, 3, heads, -1).permute(2, 0, 3, 1, 4)  # each (N, heads, S, D)
        mask = self.valid[:, None, None, :]
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return context.transpose(1, 2).flatten(2).flatten(0, 1)


class SwappedEncoder(nn.Module):
    """A FusedEncoder with the call of the vanilla encoder that it replaces.

    The vanilla modules are kept without their weights, so that they can be put back as they were; `to` and `train`
    pass them by. The state_dict is the vanilla encoder's, in names and in shapes: what a swapped model saves, a
    vanilla one loads, and the other way round.
    """

    reads_first = True  # whether a first position's output is asked for where it is masked

    def __init__(self, fused: FusedEncoder, vanilla: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.fused, self.layout = fused, layout
        self._vanilla = (vanilla,)  # nn.Module takes no notice of what lies in a tuple
        self.register_state_dict_post_hook(_as_vanilla)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_as_fused)  # type: ignore[no-untyped-call]
        self.train(vanilla.training)

    def take_weights(self) -> None:
        """Leave the vanilla modules without memory; their weights live on in the fused encoder."""
        self._vanilla[0].to_empty(device="meta")

    def encode(self, hidden: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """As run_padded. Raises ValueError where the model is being trained: no gradient would pass."""
        if self.training and torch.is_grad_enabled():
            wanted = [name for name, one in self._vanilla[0].named_parameters() if one.requires_grad]
            if wanted or hidden.requires_grad:
                raise ValueError(
                    f"the model is in training mode, and the fused encoder passes no gradients. {WAY_OUT}"
                )
        return run_padded(self.fused, hidden, valid, self.reads_first)

    def vanilla(self) -> nn.Module:
        """The vanilla encoder with the weights as they are now: their type, their device."""
        encoder = self._vanilla[0]
        encoder.load_state_dict(vanilla_state(self.fused.state_dict(), self.layout), assign=True)
        return encoder.train(self.training)


class SwappedBert(SwappedEncoder):
    """In place of a BERT-like encoder of transformers."""

    output: Any = BaseModelOutputWithPastAndCrossAttentions

    def __init__(self, fused: FusedEncoder, vanilla: nn.Module, layout: Layout, config: Any) -> None:
        super().__init__(fused, vanilla, layout)
        self.config = config

    def forward(self, hidden_states: torch.Tensor, attention_mask: object = None, **options: Any) -> Any:
        """(N, S, H) -> the vanilla encoder's output class with last_hidden_state (N, S, H).

        attention_mask: see masks.from_transformers. Raises ValueError for masks that are no padding, and for
        attentions, hidden states, caches and cross-attention, which the fused encoder does not have.
        """
        refuse_settings(self.config, options)
        valid = from_transformers(attention_mask, *hidden_states.shape[:2])
        return self.output(last_hidden_state=self.encode(hidden_states, valid))


class SwappedDistilBert(SwappedBert):
    """In place of DistilBERT's Transformer."""

    output: Any = BaseModelOutput


class SwappedTorch(SwappedEncoder):
    """In place of a torch.nn.TransformerEncoder."""

    reads_first = False  # its own fast path leaves zeros there

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
        """(N, S, H), or (S, N, H) without batch_first, or (S, H) -> the same shape.

        src_key_padding_mask: (N, S), or (S,) for (S, H); see masks.from_padding. Raises ValueError for a `mask` of
        queries against keys, is_causal, nested tensors and other shapes.
        """
        if mask is not None or is_causal:
            raise ValueError(
                f"mask and is_causal tell queries apart; the fused encoder takes src_key_padding_mask. {WAY_OUT}"
            )
        if src.is_nested or src.dim() not in (2, 3) or src.shape[-1] != self.fused.config.hidden:
            shape = "nested" if src.is_nested else tuple(src.shape)
            raise ValueError(f"src is {shape}; wanted: 2 or 3 dimensions, the last {self.fused.config.hidden}")
        if src.dim() == 2:
            padding = None if src_key_padding_mask is None else src_key_padding_mask.unsqueeze(0)  # (1, S)
            return self._run(src.unsqueeze(0), padding).squeeze(0)
        if self.batch_first:
            return self._run(src, src_key_padding_mask)
        return self._run(src.transpose(0, 1), src_key_padding_mask).transpose(0, 1)

    def _run(self, hidden: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        return self.encode(hidden, from_padding(padding, *hidden.shape[:2]))


FUSED = "fused."  # where a SwappedEncoder's own tensors lie


def _as_vanilla(module: SwappedEncoder, state: dict[str, torch.Tensor], prefix: str, _: object) -> None:
    own = [name for name in state if name.startswith(prefix + FUSED)]
    fused = {name.removeprefix(prefix + FUSED): state.pop(name) for name in own}
    state.update({prefix + name: tensor for name, tensor in vanilla_state(fused, module.layout).items()})


def _as_fused(module: SwappedEncoder, state: dict[str, torch.Tensor], prefix: str, *rest: Any) -> None:
    metadata, _, missing, _, errors = rest  # the others: strict, unexpected
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    try:
        fused = fused_state(own, module.layout)
        whole = _shapes(fused) == _shapes(module.fused.state_dict())
    except ValueError:  # gaps, or something else
        whole = False
    if not whole:
        assigns = metadata.get("assign_to_params_buffers", False)
        own, fused = _completed(module, own, assigns, prefix, missing, errors)
    for name in own:
        del state[prefix + name]
    state.update({prefix + FUSED + name: tensor for name, tensor in fused.items()})


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _completed(
    module: SwappedEncoder, given: dict[str, torch.Tensor], assigns: bool, prefix: str,
    missing: list[str], errors: list[str],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:  # fmt: skip
    """What of `given` is the encoder's, and with what it has now in the gaps, its fused state.

    As load_state_dict does it with a vanilla encoder, tensor by tensor: what is missing or misshapen is reported by
    its vanilla name, and the rest is loaded. All of it in one type and on one device, the encoder's own, unless
    `assigns` asks for what came: where that is of one kind; or for an encoder on meta, where nothing can fill gaps,
    where it is whole, and then in the type that loses nothing.
    """
    now = vanilla_state(module.fused.state_dict(), module.layout)
    known = {name: tensor for name, tensor in given.items() if name in now}
    missing.extend(prefix + name for name in now if name not in known)
    fitting = {}
    for name, tensor in known.items():
        if tensor.shape == now[name].shape and tensor.is_floating_point():
            fitting[name] = tensor
        else:
            errors.append(
                f"size mismatch for {prefix}{name}: {tensor.dtype} of {tuple(tensor.shape)} came; wanted: floating "
                f"point of {tuple(now[name].shape)}."
            )
    like = next(iter(now.values()))
    one_kind = len({(tensor.dtype, tensor.device) for tensor in fitting.values()}) == 1
    dtype, device = like.dtype, like.device
    if assigns and (len(fitting) == len(now) if like.is_meta else one_kind):
        dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in fitting.values()))
        device = next(iter(fitting.values())).device
    return known, fused_state({name: fitting.get(name, now[name]).to(device, dtype) for name in now}, module.layout)


def refuse_settings(config: Any, options: dict[str, Any]) -> None:
    """Raise ValueError for what a config of transformers, or a call, asks for and a fused encoder does not have."""
    attention = getattr(config, "_attn_implementation", None)
    if attention not in ATTENTION:
        raise ValueError(
            f"the attention implementation is {attention!r}, which may be another function; wanted: one of "
            f'{", ".join(filter(None, ATTENTION))}. model.set_attn_implementation("sdpa") sets it'
        )
    asked = [name for name in NOT_RETURNED if options.get(name, getattr(config, name, False))]
    given = [name for name in NOT_TAKEN if options.get(name) is not None and options[name] is not False]
    if asked or given:
        raise ValueError(f"{', '.join([*asked, *given])}: the fused encoder has no such thing. {WAY_OUT}")
