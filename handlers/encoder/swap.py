"""Swap the encoder of a model for a fused one, and back.

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    swap_encoder(model)      # embeddings, pooler and head stay, and the model is called as before
    fused_encoder(model)     # the FusedEncoder inside
    unswap_encoder(model)    # the vanilla encoder again

Instances change, never classes. Supported are models of transformers with any head around an encoder of BERT,
RoBERTa, XLM-R, CamemBERT, ELECTRA, Data2Vec, ERNIE, DistilBERT and others that are built alike (families.FAMILIES),
and torch.nn.TransformerEncoder, alone or inside any module. For fairseq see handlers.encoder.fairseq.

The fused encoder is for inference: it has no dropout in any mode and passes no gradients. A model in training mode
raises UnsupportedError if a call would need gradients. A swapped model saves and loads in the library's own layout
(state_dict, save_pretrained).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from handlers.encoder.conversion import convert
from handlers.encoder.errors import UnsupportedError
from handlers.encoder.families import class_name, find_encoders
from handlers.encoder.fused import FusedEncoder
from handlers.encoder.references import used_outside
from handlers.encoder.swapped import SwappedEncoder
from handlers.misfits import listed

# transformers hooks an encoder's layers at the first call that asks for hidden states, and remembers that here.
HOOKED = "_output_capturing_hooks_installed"


def swap_encoder(model: nn.Module) -> nn.Module:
    """Replace every vanilla encoder in `model` by a fused one with the same weights, in place.

    The vanilla modules give their weights away. Three quarters of them are taken over without a copy; query, key and
    value exist twice while this runs.

    Args:
        model: a model of transformers, a torch.nn.TransformerEncoder, or a module that holds such encoders.

    Returns:
        `model`; or its replacement, if `model` is itself an encoder.

    Raises:
        UnsupportedError: an architecture or a setting that the fused encoder does not compute exactly, by name.
            Nothing has changed then.
        ValueError: `model` is swapped already.
    """
    if swapped := _swapped(model):
        raise ValueError(f"already swapped: {_names(swapped)}; unswap_encoder(model) undoes it")
    found = find_encoders(model)
    for name, encoder in found.items():
        if outside := used_outside(model, encoder):
            raise UnsupportedError(
                f"{listed(outside)}: used by {name or 'the encoder'} and outside it too; its weights would be gone "
                "there. Give the outside a copy of its own first"
            )
    replacements = {name: _convert(name, encoder) for name, encoder in found.items()}
    for replacement in replacements.values():
        replacement.take_weights()
    return _replace(model, {found[name]: replacement for name, replacement in replacements.items()})


def unswap_encoder(model: nn.Module) -> nn.Module:
    """Put the vanilla encoders back, with the weights as they are now: their values, dtype and device.

    Args:
        model: what `swap_encoder` returned, or a module that holds it.

    Returns:
        `model`; or the vanilla encoder, if `model` is itself a swapped one.

    Raises:
        ValueError: there is no swapped encoder in `model`.
    """
    swapped = _swapped(model)
    if not swapped:
        raise ValueError(f"{type(model).__name__} has no swapped encoder; swap_encoder(model) makes one")
    encoders: dict[nn.Module, nn.Module] = {replacement: replacement.vanilla() for replacement in swapped.values()}
    if not any(module._forward_hooks for encoder in encoders.values() for module in encoder.modules()):
        # Hidden states may have been asked for while swapped, when there were no layers to hook.
        for module in model.modules():
            vars(module).pop(HOOKED, None)
    return _replace(model, encoders)


def fused_encoder(model: nn.Module) -> FusedEncoder:
    """Return the FusedEncoder in a swapped model.

    Raises:
        ValueError: there is none, or there are several.
    """
    swapped = _swapped(model)
    if len(swapped) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(swapped)} swapped encoders ({_names(swapped) or 'swap_encoder(model) '}"
            f"{'' if swapped else 'makes one'}); wanted: one. Of several, pass the submodule that holds it"
        )
    return next(iter(swapped.values())).fused


def _swapped(model: nn.Module) -> dict[str, SwappedEncoder]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SwappedEncoder)}


def _convert(name: str, encoder: nn.Module) -> SwappedEncoder:
    try:
        return convert(encoder)
    except ValueError as error:
        described = f"{name} ({class_name(encoder)})" if name else class_name(encoder)
        raise UnsupportedError(f"{described} cannot be fused: {error}") from None


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replace modules under every name that they have in `model`."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child is not None and child in replacements:
                setattr(module, name, replacements[child])
    return replacements.get(model, model)


def _names(swapped: Mapping[str, SwappedEncoder]) -> str:
    return listed(name or "the model itself" for name in swapped)
