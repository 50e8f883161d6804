"""A vanilla encoder of transformers or PyTorch, read into a FusedEncoder with the same call.

A class is recognised by its full name, and everything inside must be the library's own: a subclass, an adapter
(LoRA), a quantised Linear or a hook may compute something else and is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from handlers.encoder.checks import require_plain_config, require_plain_modules
from handlers.encoder.errors import UnsupportedError
from handlers.encoder.families import FAMILIES, class_name
from handlers.encoder.ops import ACTIVATIONS
from handlers.encoder.swapped import SwappedEncoder, SwappedTorch
from handlers.encoder.weights import build_encoder, fused_state
from handlers.misfits import listed

FUNCTIONS: dict[Any, str] = {
    F.gelu: "gelu",
    F.relu: "relu",
    torch.relu: "relu",
    F.silu: "silu",
    torch.tanh: "tanh",
}
MODULES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.SiLU: "swish", nn.Tanh: "tanh"}


def convert(encoder: nn.Module) -> SwappedEncoder:
    """Build the module that stands in for `encoder`, which is not changed.

    Args:
        encoder: an encoder that `families.find_encoders` returned.

    Returns:
        The replacement, in the encoder's training mode. It shares the weights that need no rearranging.

    Raises:
        ValueError: the encoder cannot be fused exactly; the message names what is in the way.
    """
    family = FAMILIES[class_name(encoder)]
    layers: list[Any] = list(getattr(encoder, family.layers))
    if not layers:
        raise ValueError("it has no layers")
    config = attrgetter(family.config)(encoder) if family.config else None
    require_plain_config(config)
    require_plain_modules(encoder, family.activation)
    state = fused_state(encoder.state_dict(), family.layout)
    norms = [module for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
    fused = build_encoder(
        state,
        heads=_common("heads", map(attrgetter(family.heads), layers)),
        activation=_common("activation", (activation_name(attrgetter(family.activation)(layer)) for layer in layers)),
        eps=_common("eps", (norm.eps for norm in norms)),
        norm_first=_common("norm_first", (getattr(layer, "norm_first", False) for layer in layers)),
    )
    if config is None:
        batch_first = _common("batch_first", (layer.self_attn.batch_first for layer in layers))
        return SwappedTorch(fused, encoder, family.layout, batch_first)
    return family.replacement(fused, encoder, family.layout, config)


def activation_name(function: Any) -> str:
    """Return the key in ops.ACTIVATIONS of an activation function or module.

    Raises:
        UnsupportedError: it is none of these.
    """
    if type(function) is nn.GELU:
        return "gelu" if function.approximate == "none" else "gelu_pytorch_tanh"
    name = _module_name(type(function)) if isinstance(function, nn.Module) else FUNCTIONS.get(function)
    if name is None:
        found = getattr(function, "__name__", type(function).__name__)
        raise UnsupportedError(f"its activation is {found}; fused are: {', '.join(ACTIVATIONS)}")
    return name


def _module_name(kind: type[nn.Module]) -> str | None:
    if kind.__module__ != "transformers.activations":
        return MODULES.get(kind)
    from transformers.activations import ACT2FN  # here, for users of PyTorch or fairseq may not have it

    return next((name for name in ACTIVATIONS if type(ACT2FN[name]) is kind), None)


def _common(name: str, values: Iterable[Any]) -> Any:
    """Return the value that all layers have. Raises UnsupportedError if they differ."""
    found = list(dict.fromkeys(values))
    if len(found) != 1:
        raise UnsupportedError(f"its layers differ in {name}: {listed(found)}; wanted: one for all")
    return found[0]
