"""The weights of a text encoder's folder -> transformers' model for a task, with a name for all that does not fit.

Weights are read here, not by transformers, which would follow a folder's words to other files, adapters and
quantisers: as safetensors, or as pickles with `weights_only`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from archive.checkpoints.checkpoint_files import load_tensors
from archive.checkpoints.guards import reading
from archive.checkpoints.sources import CheckpointError, listed, weight_file
from handlers import LOCAL, tasks
from handlers.engines.text_networks import AUTO_MODELS, without_pooling

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Buffers that older releases stored, and that transformers computes itself.
BUFFERS = re.compile(r"(.*\.)?(position_ids|token_type_ids|inv_freq|original_inv_freq|relative_position_index)")
POOLER = re.compile(r"(.*\.)?pooler\..*")


class Loaded(NamedTuple):
    """model: fp32, on the CPU, in eval mode. unused: weights of the files that the task's class does not have."""

    model: Any
    unused: tuple[str, ...]


def class_for(config: Any, task: str) -> Any:
    """transformers' own class for the task. Raises CheckpointError where this architecture has none."""
    auto = getattr(transformers, AUTO_MODELS[task])
    failure = f"transformers builds no {config.model_type} model for {task} from config.json"
    with reading(failure, "Choose another --task, or mend the file"), torch.device("meta"):
        return type(auto.from_config(config, trust_remote_code=False, **without_pooling(config, task)))


def load(folder: Path, config: Any, task: str) -> Loaded:
    """Build the task's model with the folder's weights.

    Raises CheckpointError that names weights which are missing, misshapen, not finite or no floats, and those that
    the encoder itself does not know. What lies beside the encoder (other tasks' heads, poolers, stored buffers) is
    left out, as transformers leaves it out, and told of.
    """
    path = weight_file(folder)
    tensors, _ = load_tensors(path)
    strange = [name for name, value in tensors.items() if value.dtype not in FLOATS and not BUFFERS.fullmatch(name)]
    quantised = [name for name in strange if name.endswith(("weight", "bias"))]
    if quantised:
        types = sorted({str(tensors[name].dtype) for name in quantised})
        raise CheckpointError(
            f"{path.name} holds {', '.join(types)} where floats are wanted, so it is quantised: {listed(quantised)}. "
            "Wanted: the checkpoint that it was made from, in float32, float16 or bfloat16"
        )
    model_class = class_for(config, task)
    with reading(
        f"{path.name} does not fit {model_class.__name__}", "Wanted: the files as save_pretrained wrote them"
    ):
        model, report = _fill(model_class, config, task, tensors)
    _refuse_misfits(model, task, report, path.name)
    with torch.no_grad():
        for name in _spare(report["missing_keys"], task):  # random otherwise; no answer depends on it
            model.get_parameter(name).zero_()
    broken = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"these weights are not finite (NaN or infinity): {listed(broken)}")
    return Loaded(model.eval(), tuple(sorted(report["unexpected_keys"])))


def _fill(
    model_class: Any, config: Any, task: str, tensors: Mapping[str, torch.Tensor]
) -> tuple[Any, dict[str, Any]]:
    options: dict[str, Any] = {**LOCAL, **without_pooling(config, task)}
    model, report = model_class.from_pretrained(
        None,  # nothing is read but what is handed over
        config=config,
        state_dict=dict(tensors),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    return model, report


def _refuse_misfits(model: Any, task: str, report: Mapping[str, Any], file: str) -> None:
    spare = _spare(report["missing_keys"], task)
    missing = [f"missing {name}" for name in sorted(set(report["missing_keys"]) - set(spare))]
    misshapen = [
        f"misshapen {name} {tuple(came)}, wanted {tuple(wanted)}"
        for name, came, wanted in sorted(report["mismatched_keys"])
    ]
    inside = [f"unexpected {name}" for name in sorted(report["unexpected_keys"]) if _within_encoder(name, model)]
    problems = [*missing, *misshapen, *inside]
    if problems:
        raise CheckpointError(
            f"the weights of {file} do not fit {type(model).__name__} as config.json has it: {listed(problems)}. "
            "A head that is missing would be random: choose the --task that the checkpoint was trained for. "
            "Unexpected weights within the encoder are of more layers, or of another network, than config.json says"
        )


def _spare(missing: Iterable[str], task: str) -> list[str]:
    """Missing weights that no answer depends on: embeddings are pooled from token vectors, not by the pooler."""
    return [name for name in sorted(missing) if tasks.head(task).is_embedding and POOLER.fullmatch(name)]


def _within_encoder(name: str, model: Any) -> bool:
    """Whether a weight that the model's class does not have belongs to one of its encoder's own parts."""
    if BUFFERS.fullmatch(name) or name.rpartition(".")[2] in _buffers(model):
        return False
    inner = name.removeprefix(f"{model.base_model_prefix}.")
    parts = {child for child, _ in model.base_model.named_children()} - {"pooler"}
    return inner.partition(".")[0] in parts


def _buffers(model: Any) -> set[str]:
    return {name.rpartition(".")[2] for name, _ in model.named_buffers()}
