"""Builds transformers' model for a task with the weights of a text encoder's folder, and names all that do not fit.

Weights are read here, as safetensors or as pickles with `weights_only`. transformers would follow the folder's files
to other files, adapters and quantisers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from archive.checkpoints import weight_checks
from archive.checkpoints.errors import explain_failure
from archive.checkpoints.locations import weight_file
from archive.checkpoints.weight_files import load_tensors
from handlers import LOCAL, misfits, tasks
from handlers.engines.text_networks import AUTO_MODELS, without_pooling

# Buffers that older releases stored. transformers computes them itself.
BUFFERS = re.compile(r"(.*\.)?(position_ids|token_type_ids|inv_freq|original_inv_freq|relative_position_index)")
POOLER = re.compile(r"(.*\.)?pooler\..*")


class Loaded(NamedTuple):
    """A model with its weights.

    Attributes:
        model: fp32, on the CPU, in eval mode.
        unused: weights of the file that the task's class does not have.
    """

    model: Any
    unused: tuple[str, ...]


def class_for(config: Any, task: str) -> Any:
    """Return transformers' own class for the task. Raises CheckpointError if this architecture has none."""
    auto = getattr(transformers, AUTO_MODELS[task])
    failure = f"transformers builds no {config.model_type} model for {task} from config.json"
    with explain_failure(failure, "Choose another --task, or mend the file"), torch.device("meta"):
        return type(auto.from_config(config, trust_remote_code=False, **without_pooling(config, task)))


def load(folder: Path, config: Any, task: str) -> Loaded:
    """Build the task's model with the folder's weights.

    Weights outside the encoder that the task does not use (other tasks' heads, poolers, stored buffers) are left out,
    as transformers leaves them out. The result names them.

    Raises:
        CheckpointError: with the names of weights that are missing, misshapen, not finite or not floats, and of those
            within the encoder that it does not have.
    """
    path = weight_file(folder)
    tensors, _ = load_tensors(path)
    weight_checks.refuse_non_floats(tensors, _is_buffer)
    model_class = class_for(config, task)
    with explain_failure(
        f"{path.name} does not fit {model_class.__name__}", "Wanted: the files as save_pretrained wrote them"
    ):
        model, report = _fill(model_class, config, task, tensors)
    _refuse_misfits(model, task, report, path.name)
    with torch.no_grad():
        for name in _spare(report["missing_keys"], task):  # they would be random; no answer depends on them
            model.get_parameter(name).zero_()
    weight_checks.refuse(
        {"not finite (NaN or infinity)": weight_checks.not_finite(model.state_dict())},
        f"{path.name} holds values that no trained network has",
        "The training diverged, or the file is damaged",
    )
    return Loaded(model.eval(), tuple(sorted(report["unexpected_keys"])))


def _fill(
    model_class: Any, config: Any, task: str, tensors: Mapping[str, torch.Tensor]
) -> tuple[Any, dict[str, Any]]:
    options: dict[str, Any] = {**LOCAL, **without_pooling(config, task)}
    model, report = model_class.from_pretrained(
        None,  # no file is read
        config=config,
        state_dict=dict(tensors),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    return model, report


def _refuse_misfits(model: Any, task: str, report: Mapping[str, Any], file: str) -> None:
    """Raise CheckpointError, with their names, for weights that do not make the whole encoder and the task's head."""
    found, spare = misfits.loading_misfits(report), _spare(report["missing_keys"], task)
    weight_checks.refuse(
        {
            "missing": [name for name in found["missing"] if name not in spare],
            "misshapen": found["misshapen"],
            "unexpected": [name for name in found["unexpected"] if _within_encoder(name, model)],
        },
        f"the weights of {file} do not fit {type(model).__name__} as config.json has it",
        "A head that is missing would be random: choose the --task that the checkpoint was trained for. "
        "Unexpected weights within the encoder are of more layers, or of another network, than config.json says",
    )


def _spare(missing: Iterable[str], task: str) -> list[str]:
    """Return missing weights that no answer depends on: embeddings are pooled without the pooler."""
    return [name for name in sorted(missing) if tasks.head(task).is_embedding and POOLER.fullmatch(name)]


def _within_encoder(name: str, model: Any) -> bool:
    """Return whether a weight that the model's class does not have belongs to a part of its encoder."""
    if BUFFERS.fullmatch(name) or name.rpartition(".")[2] in _buffers(model):
        return False
    inner = name.removeprefix(f"{model.base_model_prefix}.")
    parts = {child for child, _ in model.base_model.named_children()} - {"pooler"}
    return inner.partition(".")[0] in parts


def _is_buffer(name: str, tensor: torch.Tensor) -> bool:
    """Return whether it is none of the weights, which have to be floats."""
    return BUFFERS.fullmatch(name) is not None or not name.endswith(("weight", "bias"))


def _buffers(model: Any) -> set[str]:
    return {name.rpartition(".")[2] for name, _ in model.named_buffers()}
