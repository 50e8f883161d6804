"""The weights of an encoder: from a library's layout to that of FusedEncoder and back, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from handlers.encoder.fused import EncoderConfig, FusedEncoder, layer_shapes
from handlers.encoder.layouts import FUSED_LAYER, LEAVES, Layout, count_layers
from handlers.misfits import Shapes, listed, misshapen, named_misfits, report

Tensors = Mapping[str, torch.Tensor]


def fused_state(state: Tensors, layout: Layout) -> dict[str, torch.Tensor]:
    """Rearrange a library's tensors for a FusedEncoder. Tensors that are not stacked are not copied.

    Args:
        state: the encoder's tensors by the layout's names.
        layout: the library's names.

    Returns:
        The state_dict of a FusedEncoder.

    Raises:
        ValueError: tensors are missing, unexpected, misshapen, not floating-point, or of several dtypes or devices;
            the message has the layout's names.
    """
    layers = count_layers(state, layout.layer)
    if not layers:
        _refuse_names(state, (), layout.name)
    final_norm = layout.final is not None and any(f"{layout.final}{leaf}" in state for leaf in LEAVES)
    table = layout.table(layers, final_norm)
    own = [name for names in table.values() for name in names]
    _refuse_names(state, own, layout.name)
    shapes = {
        name: (shape[0] // len(table[fused]), *shape[1:])
        for fused, shape in _shapes(layers, final_norm, *_sizes(state, table)).items()
        for name in table[fused]
    }
    _refuse_tensors(state, shapes, layout.name)
    return {fused: _stack([state[name] for name in names]) for fused, names in table.items()}


def vanilla_state(fused: Tensors, layout: Layout) -> dict[str, torch.Tensor]:
    """Undo fused_state. Tensors that were stacked get memory of their own, which safetensors needs.

    Args:
        fused: the state_dict of a FusedEncoder.
        layout: the library's names.

    Returns:
        The encoder's tensors by the layout's names.

    Raises:
        ValueError: `fused` is no FusedEncoder's state_dict, or the layout has no name for a tensor.
    """
    layers, final_norm = count_layers(fused, FUSED_LAYER), any(f"norm_{leaf}" in fused for leaf in LEAVES)
    table = layout.table(layers, final_norm)
    _refuse_names(fused, table, "FusedEncoder")
    sizes = _sizes(fused, {name: (name,) for name in table})
    _refuse_tensors(fused, _shapes(layers, final_norm, *sizes), "FusedEncoder")
    return {
        name: tensor
        for own, names in table.items()
        for name, tensor in zip(names, _unstack(fused[own], len(names)), strict=True)
    }


def build_encoder(
    state: Tensors, *, heads: int, activation: str, eps: float, norm_first: bool = False
) -> FusedEncoder:
    """Build a FusedEncoder in eval mode around the tensors of `state`, which are not copied.

    Args:
        state: what fused_state returned. Number of layers, sizes and the last LayerNorm are read from it.
        heads, activation, eps, norm_first: see EncoderConfig.

    Raises:
        ValueError: such an encoder cannot be built.
    """
    hidden, intermediate = _sizes(state, {name: (name,) for name in state})
    config = EncoderConfig(
        layers=count_layers(state, FUSED_LAYER),
        hidden=hidden,
        heads=heads,
        intermediate=intermediate,
        activation=activation,
        eps=eps,
        norm_first=norm_first,
        final_norm="norm_weight" in state,
    )
    with torch.device("meta"):
        encoder = FusedEncoder(config)
    encoder.load_state_dict(state, assign=True)
    return encoder.eval()


def _sizes(state: Tensors, table: Mapping[str, tuple[str, ...]]) -> tuple[int, int]:
    """Return hidden and intermediate size, read from two biases of the first layer."""
    first = FUSED_LAYER.format(0)
    names = (table[f"{first}attention_norm_bias"][0], table[f"{first}up_bias"][0])
    return state[names[0]].numel(), state[names[1]].numel()


def _shapes(layers: int, final_norm: bool, hidden: int, intermediate: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a FusedEncoder's state_dict."""
    shapes = {
        f"{FUSED_LAYER.format(index)}{name}": shape
        for index in range(layers)
        for name, shape in layer_shapes(hidden, intermediate).items()
    }
    return shapes | ({f"norm_{leaf}": (hidden,) for leaf in LEAVES} if final_norm else {})


def _stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0].contiguous()


def _unstack(tensor: torch.Tensor, count: int) -> list[torch.Tensor]:
    return [part.clone() for part in tensor.chunk(count)] if count > 1 else [tensor]


def _refuse_names(state: Tensors, wanted: Iterable[str], layout: str) -> None:
    wanted = list(wanted)
    if not wanted:
        raise ValueError(f"no layers as {layout} names them among {listed(state) or 'no tensors at all'}")
    found = report(named_misfits(state, wanted))
    if found:
        raise ValueError(f"the weights are not those of an encoder as {layout} names them; {found}")


def _refuse_tensors(state: Tensors, shapes: Shapes, layout: str) -> None:
    found = [
        misshapen(name, state[name].shape, shape) for name, shape in shapes.items() if state[name].shape != shape
    ]
    if found:
        raise ValueError(f"the weights' shapes are not those of an encoder as {layout} has it; {listed(found)}")
    integers = [f"{name} ({t.dtype})" for name, t in state.items() if not t.is_floating_point()]
    if integers:
        raise ValueError(
            f"not floating-point: {listed(integers)}; if the model is quantised, take the one that it was made from"
        )
    found = sorted({f"{tensor.dtype} on {tensor.device}" for tensor in state.values()})
    if len(found) > 1:
        raise ValueError(f"the weights are of several kinds, {listed(found)}; bring them to one with model.to(...)")
