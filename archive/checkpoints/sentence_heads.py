"""Reads the modules that sentence-transformers' folders have behind pooling: Dense, LayerNorm, Dropout, Normalize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from archive.checkpoints import sentence_keys, weight_checks
from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.json_files import path_inside, read_json
from archive.checkpoints.weight_files import load_tensors
from handlers.misfits import listed
from handlers.tasks.shared.embedding_head import (
    ACTIVATIONS,
    DENSE,
    LAYER_NORM,
    NORMALIZE,
    EmbeddingHead,
    Step,
)

DROPOUT = "Dropout"  # does nothing outside training
KINDS = (DENSE, LAYER_NORM, DROPOUT, NORMALIZE)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # sentence-transformers looks in this order
# A class's full name -> its short one. Each is a class of PyTorch that needs no arguments and has no weights.
DOTTED = {
    dotted: name for name, made in ACTIVATIONS.items() for dotted in (f"{made.__module__}.{name}", f"torch.nn.{name}")
}
TANH = "torch.nn.modules.activation.Tanh"  # what sentence-transformers takes if the file names none


class Behind(NamedTuple):
    """What follows pooling.

    Attributes:
        head: modules before the last Normalize; None if there are none.
        normalize: whether a Normalize module is the last one.
    """

    head: EmbeddingHead | None
    normalize: bool


class _Module(NamedTuple):
    """One entry of modules.json: its kind, its folder ("" for the checkpoint's own), its config.json's content."""

    kind: str
    name: str
    folder: Path
    config: Mapping[str, Any]


def read(folder: Path, modules: Sequence[Mapping[str, Any]]) -> Behind:
    """Read the modules behind pooling.

    Args:
        folder: the checkpoint's.
        modules: their entries in modules.json. Their kinds are among KINDS.

    Raises:
        CheckpointError: for keys, values, activations and weights that are not served, and for sizes that do not fit.
    """
    found = [module for entry in modules if (module := _module(folder, entry)).kind != DROPOUT]
    normalize = bool(found) and found[-1].kind == NORMALIZE
    while found and found[-1].kind == NORMALIZE:
        found.pop()
    if not found:
        return Behind(None, normalize)
    steps = _steps(found)
    try:
        head = EmbeddingHead(steps)
    except ValueError as error:
        raise CheckpointError(f"modules.json: {error}") from None
    for index, (module, layer) in enumerate(zip(found, head.layers, strict=True)):
        _fill(layer, module, f"{module.name} ({head.steps[index]})")
    return Behind(head.eval(), normalize)


def _module(folder: Path, entry: Mapping[str, Any]) -> _Module:
    kind, name = str(entry["type"]).rpartition(".")[2], str(entry["path"])
    own = path_inside(folder, entry["path"], "modules.json")
    path = own / "config.json"
    config: Mapping[str, Any] = read_json(path) if name and path.is_file() else {}
    keys = {DENSE: sentence_keys.DENSE, LAYER_NORM: sentence_keys.LAYER_NORM, DROPOUT: sentence_keys.DROPOUT}
    sentence_keys.refuse_unknown(config, keys.get(kind, sentence_keys.NORMALIZE), f"{name}/config.json")
    return _Module(kind, name, own, config)


def _steps(modules: Sequence[_Module]) -> list[Step]:
    steps = [_step(module) for module in modules]
    sizes = [step.size_in for step in steps if step.size_in]
    # A Normalize module names no size: it has that of its neighbours.
    for index, step in enumerate(steps):
        if not step.size_in:
            size = steps[index - 1].size_out if index else sizes[0]
            steps[index] = Step(NORMALIZE, size, size)
    return steps


def _step(module: _Module) -> Step:
    if module.kind == NORMALIZE:
        return Step(NORMALIZE, 0, 0)
    wanted = ("in_features", "out_features") if module.kind == DENSE else ("dimension",)
    missing = [key for key in wanted if module.config.get(key) is None]
    if missing:
        raise CheckpointError(f"{module.name}/config.json names no {listed(missing)}, which a {module.kind} needs")
    if module.kind == LAYER_NORM:
        size = int(module.config["dimension"])
        return Step(LAYER_NORM, size, size)
    return Step(
        DENSE,
        int(module.config["in_features"]),
        int(module.config["out_features"]),
        bias=module.config.get("bias") is not False,
        activation=_activation(module),
        residual=bool(module.config.get("use_residual")),
    )


def _activation(module: _Module) -> str:
    named = module.config.get("activation_function", TANH)
    if not isinstance(named, str) or named not in DOTTED:
        raise CheckpointError(
            f"{module.name}/config.json says activation_function {named!r}, which is not served. A checkpoint's own "
            f"code is never run; served are these of torch.nn.modules.activation: {', '.join(ACTIVATIONS)}"
        )
    return DOTTED[named]


@torch.no_grad()
def _fill(layer: torch.nn.Module, module: _Module, what: str) -> None:
    """Copy a module's weights into its layer, in fp32."""
    wanted = layer.state_dict()
    if not wanted:
        return
    path = next((path for name in WEIGHTS if (path := module.folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{module.name} has no weights; wanted: {' or '.join(WEIGHTS)} beside its config.json")
    found, _ = load_tensors(path)
    weight_checks.refuse_non_floats(found)
    shared = wanted.keys() & found.keys()
    weight_checks.refuse(
        {
            "missing": sorted(wanted.keys() - found.keys()),
            "unexpected": sorted(found.keys() - wanted.keys()),
            "misshapen": sorted(name for name in shared if found[name].shape != wanted[name].shape),
            "not finite (NaN or infinity)": weight_checks.not_finite(found),
        },
        f"the weights in {module.name}/{path.name} are not those of its config.json: {what}",
        "Wanted: the folder as sentence-transformers saved it",
    )
    layer.load_state_dict({name: tensor.float() for name, tensor in found.items()})
