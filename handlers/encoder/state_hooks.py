"""state_dict hooks of a swapped encoder: it saves and loads under the vanilla encoder's names and shapes."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch
from torch import nn

from handlers.encoder.fused import FusedEncoder
from handlers.encoder.layouts import Layout
from handlers.encoder.weights import fused_state, vanilla_state

FUSED = "fused."  # how the names of the FusedEncoder's tensors begin, without the hooks

State = dict[str, torch.Tensor]


class Swapped(Protocol):
    """A module that holds a FusedEncoder as `fused`, and the layout of the vanilla encoder."""

    fused: FusedEncoder
    layout: Layout


def register(module: nn.Module) -> None:
    """Register both hooks on a module that is `Swapped`."""
    module.register_state_dict_post_hook(_save_as_vanilla)
    module.register_load_state_dict_pre_hook(_load_from_vanilla)


def _save_as_vanilla(module: Swapped, state: State, prefix: str, _: object) -> None:
    own = [name for name in state if name.startswith(prefix + FUSED)]
    fused = {name.removeprefix(prefix + FUSED): state.pop(name) for name in own}
    state.update({prefix + name: tensor for name, tensor in vanilla_state(fused, module.layout).items()})


def _load_from_vanilla(module: Swapped, state: State, prefix: str, *rest: Any) -> None:
    metadata, _, missing, _, errors = rest  # the others are strict and unexpected
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    try:
        fused = fused_state(own, module.layout)
        complete = _shapes(fused) == _shapes(module.fused.state_dict())
    except ValueError:  # names or shapes are missing or wrong; they are reported below
        complete = False
    if not complete:
        assign = metadata.get("assign_to_params_buffers", False)
        own, fused = _fill_gaps(module, own, assign, prefix, missing, errors)
    for name in own:
        del state[prefix + name]
    state.update({prefix + FUSED + name: tensor for name, tensor in fused.items()})


def _shapes(state: State) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _fill_gaps(
    module: Swapped, given: State, assign: bool, prefix: str, missing: list[str], errors: list[str]
) -> tuple[State, State]:
    """Complete an incomplete state from the present weights, as load_state_dict does for a vanilla encoder.

    Tensors that are missing or misshapen are reported by their vanilla names; the others are loaded.

    Args:
        module: the swapped encoder.
        given: the state without its prefix.
        assign: load_state_dict's `assign`.
        prefix: how the names begin in the model.
        missing, errors: load_state_dict's lists, which are appended to.

    Returns:
        The tensors of `given` that have an encoder's name, and the complete fused state.
    """
    present = vanilla_state(module.fused.state_dict(), module.layout)
    known = {name: tensor for name, tensor in given.items() if name in present}
    missing.extend(prefix + name for name in present if name not in known)
    fitting = {}
    for name, tensor in known.items():
        if tensor.shape == present[name].shape and tensor.is_floating_point():
            fitting[name] = tensor
        else:
            errors.append(
                f"size mismatch for {prefix}{name}: {tensor.dtype} of {tuple(tensor.shape)} came; wanted: floating "
                f"point of {tuple(present[name].shape)}."
            )
    dtype, device = _target(present, fitting, assign)
    whole = {name: fitting.get(name, present[name]).to(device, dtype) for name in present}
    return known, fused_state(whole, module.layout)


def _target(present: State, fitting: State, assign: bool) -> tuple[torch.dtype, torch.device]:
    """Return the one dtype and device of the filled-up state, for stacked tensors cannot have two.

    The present ones, unless `assign` asks for those of the tensors that came: if these are all alike; or, for an
    encoder on meta, which has nothing to fill gaps with, if none is missing. The dtype then loses no precision.
    """
    like = next(iter(present.values()))
    alike = len({(tensor.dtype, tensor.device) for tensor in fitting.values()}) == 1
    if not (assign and (len(fitting) == len(present) if like.is_meta else alike)):
        return like.dtype, like.device
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in fitting.values()))
    return dtype, next(iter(fitting.values())).device
