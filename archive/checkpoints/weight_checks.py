"""Checks of a checkpoint's weights against the network that they are for, shared by all readers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from archive.checkpoints.errors import CheckpointError
from handlers import misfits
from handlers.misfits import listed

Tensors = Mapping[str, torch.Tensor]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTER = "num_batches_tracked"  # BatchNorm's, which inference has no use for


def refuse(problems: Mapping[str, Sequence[str]], what: str, way_out: str) -> None:
    """Raise CheckpointError if there are problems.

    Args:
        problems: names by problem, as handlers.misfits.misfits returns them.
        what: what is wrong in general, such as "the weights are not those of a ViT".
        way_out: what a person can do, as a sentence without its full stop.
    """
    found = misfits.report(problems)
    if found:
        raise CheckpointError(f"{what}; {found}. {way_out}")


def refuse_non_floats(tensors: Tensors, allow: Callable[[str, torch.Tensor], bool] | None = None) -> None:
    """Raise CheckpointError for quantised or sparse weights, which would be taken for plain numbers.

    Args:
        tensors: by the checkpoint's own names.
        allow: tells by name and tensor which dense tensors of other types are fine, such as buffers of indices.
    """
    wrong = [
        f"{name} ({tensor.dtype})"
        for name, tensor in tensors.items()
        if tensor.layout != torch.strided
        or not (tensor.dtype in FLOATS or (allow is not None and allow(name, tensor)))
    ]
    if wrong:
        raise CheckpointError(
            f"not dense floating-point weights: {listed(wrong)}. Wanted: {listed(FLOATS)}; if the model is "
            "quantised, take the float weights that it was made from"
        )


def not_finite(tensors: Tensors) -> list[str]:
    """Return the names of tensors that hold NaN or infinity."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def surplus_layers(unexpected: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Return the unexpected names that differ from a wanted name only in the number of a layer.

    They show that the file has more layers than its network. Names are compared with and without their first part,
    which transformers adds if a file lacks it.
    """
    patterns = {_without_numbers(name) for name in wanted}
    patterns |= {pattern.partition(".")[2] for pattern in patterns}
    return [name for name in unexpected if "#" in _without_numbers(name) and _without_numbers(name) in patterns]


def _without_numbers(name: str) -> str:
    return ".".join("#" if part.isdigit() else part for part in name.split("."))


def unused_note(unused: Sequence[str], network: str) -> tuple[str, ...]:
    """Return a note that names the weights which the network does not use, or nothing if it uses all."""
    if not unused:
        return ()
    return (f"weights that {network} does not use were left out: {listed(unused, 5)}",)
