"""Swap the encoder of a model for a fused one, and back: `swap_encoder(model)`, `unswap_encoder(model)`.

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    swap_encoder(model)      # embeddings, pooler and head are what they were, and so is the way to call it
    fused_encoder(model)     # the FusedEncoder, for those who run it packed

Instances change, never classes. Supported: models of transformers with any head around an encoder of BERT, RoBERTa,
XLM-R, CamemBERT, ELECTRA, Data2Vec, ERNIE, DistilBERT and others that are built alike (vanilla.FAMILIES);
torch.nn.TransformerEncoder, alone or inside any module.
For fairseq see handlers.encoder.fairseq.

The fused encoder is for inference: it has no dropout, in training mode neither, and passes no gradients; a model in
training mode that would need them raises ValueError when it is called, one in eval mode goes without. A swapped
model saves and loads in the library's own layout (state_dict, save_pretrained).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from handlers.encoder.adapters import SwappedEncoder
from handlers.encoder.fused import FusedEncoder
from handlers.encoder.vanilla import adapt, class_name, find, why_none
from handlers.encoder.weights import listed

# transformers puts hooks on an encoder's layers at the first call that asks for hidden states, and remembers that.
HOOKED = "_output_capturing_hooks_installed"


def swap_encoder(model: nn.Module) -> nn.Module:
    """Replace every vanilla encoder in `model` by a fused one with the same weights, in place; returns `model`.

    Where `model` is itself an encoder, what replaces it is returned. The vanilla modules give their weights away:
    three quarters of them are taken over, and query, key and value exist twice while this runs.
    Raises ValueError, by name, for architectures and settings that the fused encoder does not compute exactly, and
    has changed nothing then.
    """
    if swapped := _swapped(model):
        raise ValueError(f"already swapped: {_said(swapped)}; unswap_encoder(model) undoes it")
    found = find(model)
    if not found:
        raise ValueError(why_none(model))
    for name, encoder in found.items():
        if outside := _used_outside(model, encoder):
            raise ValueError(
                f"{listed(outside)}: used by {name or 'the encoder'} and outside it too; its weights would be gone "
                "there. Give the outside a copy of its own first"
            )
    adapters = {name: _adapt(name, encoder) for name, encoder in found.items()}
    for adapter in adapters.values():
        adapter.take_weights()
    return _replace(model, {found[name]: adapter for name, adapter in adapters.items()})


def unswap_encoder(model: nn.Module) -> nn.Module:
    """Put the vanilla encoders back, with the weights in the type and on the device that they have now.

    Returns `model`, or the vanilla encoder where `model` is itself a swapped one. Raises ValueError without one.
    """
    swapped = _swapped(model)
    if not swapped:
        raise ValueError(f"{type(model).__name__} has no swapped encoder; swap_encoder(model) makes one")
    encoders: dict[nn.Module, nn.Module] = {adapter: adapter.vanilla() for adapter in swapped.values()}
    if not any(module._forward_hooks for encoder in encoders.values() for module in encoder.modules()):
        for module in model.modules():  # asked for hidden states while swapped, there were no layers to hook
            vars(module).pop(HOOKED, None)
    return _replace(model, encoders)


def fused_encoder(model: nn.Module) -> FusedEncoder:
    """The FusedEncoder in a swapped model. Raises ValueError for none, or several."""
    swapped = _swapped(model)
    if len(swapped) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(swapped)} swapped encoders ({_said(swapped) or 'swap_encoder(model) '}"
            f"{'' if swapped else 'makes one'}); wanted: one. Of several, pass the submodule that holds it"
        )
    return next(iter(swapped.values())).fused


def _swapped(model: nn.Module) -> dict[str, SwappedEncoder]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SwappedEncoder)}


def _adapt(name: str, encoder: nn.Module) -> SwappedEncoder:
    try:
        return adapt(encoder)
    except ValueError as error:
        place = f"{name} ({class_name(encoder)})" if name else class_name(encoder)
        raise ValueError(f"{place} cannot be fused: {error}") from None


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Wherever they are used, twice maybe."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child is not None and child in replacements:
                setattr(module, name, replacements[child])
    return replacements.get(model, model)


def _used_outside(model: nn.Module, encoder: nn.Module) -> list[str]:
    """Names outside `encoder` of its layers and parameters; of itself they may be many."""
    inside = set(encoder.modules())
    owned: set[object] = {*(inside - {encoder}), *encoder.parameters()}
    return [
        f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules()
        if module not in inside
        for key, value in (*module._modules.items(), *module._parameters.items())
        if value in owned
    ]


def _said(swapped: Mapping[str, SwappedEncoder]) -> str:
    return listed(name or "the model itself" for name in swapped)
