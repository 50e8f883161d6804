"""Reads image classifiers other than ResNets as transformers loads them: ViT, ConvNeXt, Swin, RegNet, timm's, ...

The archive runs transformers' own network. All that is known here is that it takes images and gives logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from archive.checkpoints import timm_folders, weight_checks
from archive.checkpoints.class_labels import labels_of
from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.locations import weight_file
from archive.checkpoints.preprocess_configs import folder_preprocess, read_timm_preprocess
from archive.checkpoints.weight_files import load_tensors
from handlers import LOCAL, misfits
from handlers.engines import networks
from handlers.images.preprocess import Preprocess

_WHOLE = (torch.int64, torch.int32, torch.bool)


class OtherClassifier(NamedTuple):
    """What image_checkpoints.ImageCheckpoint takes. state: of transformers' class for `config`, fp32, on the CPU."""

    layout: str
    config: Any
    state: dict[str, torch.Tensor]
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    notes: tuple[str, ...]


def is_other_classifier(config_json: Mapping[str, object]) -> bool:
    """Return whether a folder's config.json describes a classifier that transformers loads and that is no ResNet.

    Raises CheckpointError for a classifier of timm's that is no plain ResNet, if timm cannot be imported.
    """
    if timm_folders.is_timm(config_json):
        reason = timm_folders.why_not_plain_resnet(config_json)
        if reason and (problem := networks.timm_problem()):
            raise CheckpointError(f"{reason}; {timm_folders.WRAPPED}, and {problem}")
        return reason is not None
    kind = config_json.get("model_type")
    return kind != "resnet" and kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES


def read(folder: Path, config_json: Mapping[str, object]) -> OtherClassifier:
    """Read such a folder with this config.json. Raises CheckpointError, with the names of what does not fit."""
    channels = config_json.get("num_channels", 3)
    if channels != 3:
        raise CheckpointError(f"config.json says num_channels {channels!r}, wanted 3 (RGB)")
    timm = timm_folders.is_timm(config_json)
    preprocess = (
        read_timm_preprocess(timm_folders.pretrained_of(config_json)) if timm else preprocess_of(folder, config_json)
    )
    served = timm_folders.served_config(config_json) if timm else config_json
    model, notes = _load(folder, served)
    if timm:
        _refuse_timm(model, config_json)
    labels = labels_of(model.config.id2label)
    if timm and labels and "label_names" not in served:
        notes += (f"the checkpoint does not name its {len(labels)} classes: timm's names of ImageNet's are assumed",)
    layout = "timm" if timm else "huggingface"
    return OtherClassifier(layout, model.config, model.state_dict(), preprocess, labels, notes)


def _refuse_timm(model: Any, config_json: Mapping[str, object]) -> None:
    """Raise CheckpointError for another pooling than config.json's, and for what safetensors cannot hold."""
    configured, built = config_json.get("global_pool"), _pooling(model.timm_model)
    if isinstance(configured, str) and built is not None and configured != built:
        raise CheckpointError(
            f"config.json says global_pool {configured!r}, and timm builds {built!r} from its model_args. Wanted: "
            "global_pool among model_args, as timm 1.0.31 and newer save it"
        )
    addresses = [value.data_ptr() for value in model.state_dict().values() if value.numel()]
    if len(set(addresses)) < len(addresses):
        raise CheckpointError(
            f"{config_json['architecture']} shares weights between layers, which transformers cannot save for timm's "
            "networks"
        )


def _pooling(network: Any) -> str | None:
    """Return timm's name for a network's pooling, in its head or outside it; None if it has no name."""
    holders = (getattr(network, "head", None), network)
    held = [getattr(holder, "global_pool", None) for holder in holders]
    words = [getattr(pooling, "pool_type", pooling) for pooling in held]
    return next((word for word in words if isinstance(word, str)), None)


def preprocess_of(folder: Path, config_json: Mapping[str, object]) -> Preprocess:
    """Return a folder's preprocessing. Raises CheckpointError if its files do not describe it."""
    found = folder_preprocess(folder)
    if found is None:
        raise CheckpointError(
            "the folder has no preprocessor_config.json and no processor_config.json with an image_processor, and "
            f"networks of type {config_json.get('model_type')} were trained with different preprocessings. "
            "Wanted: that file, from the checkpoint that this one was made from, or as AutoImageProcessor saves it"
        )
    return found


def _load(folder: Path, served: Mapping[str, object]) -> tuple[Any, tuple[str, ...]]:
    """Return the network with the folder's weights, and notes. Only `served` and the weight file are read."""
    tensors, _ = load_tensors(weight_file(folder))
    try:
        config = CONFIG_MAPPING[str(served["model_type"])].from_dict(dict(served))
        network_class = networks.class_of(config)
    except Exception as error:  # of strict dataclasses
        raise CheckpointError(f"transformers cannot load it as an image classifier ({error})") from error
    config.architectures = [network_class.__name__]
    return load_network(tensors, config, network_class, "an image classifier")


def load_network(
    tensors: dict[str, torch.Tensor], config: Any, network_class: Any, what: str
) -> tuple[Any, tuple[str, ...]]:
    """Return the network with these weights, in eval mode, and notes of what was left out.

    Args:
        tensors: by the checkpoint's names.
        config: transformers' configuration.
        network_class: transformers' class.
        what: the network is, for messages, such as "an image classifier".

    Raises:
        CheckpointError: for weights that do not make the whole network.
    """
    weight_checks.refuse_non_floats(tensors, _is_index_or_mask)
    try:
        model, report = network_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32, ignore_mismatched_sizes=True,
            output_loading_info=True, **LOCAL,
        )  # fmt: skip
    except Exception as error:  # of transformers, of strict dataclasses, and of the network's own code
        raise CheckpointError(f"transformers cannot load it as {what} ({error})") from error
    _refuse_misfits(model, report)
    return model.eval(), weight_checks.unused_note(sorted(report["unexpected_keys"]), type(model).__name__)


def _refuse_misfits(model: Any, report: Mapping[str, Any]) -> None:
    """Raise CheckpointError, with their names, for weights that do not make the whole network."""
    state, found = model.state_dict(), misfits.loading_misfits(report)
    problems = {
        "missing": [name for name in found["missing"] if not name.endswith(weight_checks.COUNTER)],
        "of more layers than config.json has": weight_checks.surplus_layers(found["unexpected"], state),
        "misshapen": found["misshapen"],
        "not finite": weight_checks.not_finite(state),
    }
    if any(problems.values()):  # what is unexpected may be what is missing, under a wrong name
        weight_checks.refuse(
            {**problems, "unexpected": found["unexpected"]},
            f"the weights are not those of a {type(model).__name__}",
            "A part that is missing would be random. Wanted: the whole network, as save_pretrained writes it",
        )


def _is_index_or_mask(name: str, tensor: torch.Tensor) -> bool:
    """Return whether it can be a buffer of indices or a mask. What is multiplied with inputs has to be floats."""
    return tensor.dtype in _WHOLE and not name.endswith((".weight", ".bias"))


@torch.inference_mode()
def refuse_size(network: Any, height: int, width: int) -> None:
    """Run the network once on a blank image.

    Args:
        network: transformers' classifier, in eval mode, fp32 on the CPU.
        height, width: of the image, in pixels.

    Raises:
        CheckpointError: if the network takes other sizes only (ViT), or gives something else than a row of logits.
    """
    name, config = type(network).__name__, network.config
    try:
        output = network(torch.zeros(1, 3, height, width))
    except Exception as error:  # each network has its own words for it
        raise CheckpointError(
            f"{name} does not take images of {width} x {height} pixels, which --size or the checkpoint's "
            f"preprocessing asks for; its config.json says image_size {getattr(config, 'image_size', None)} ({error})"
        ) from error
    logits = getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise CheckpointError(f"{name} gives {type(output).__name__} for one image, wanted logits")
    if tuple(logits.shape) != (1, config.num_labels):
        raise CheckpointError(
            f"{name} gives {tuple(logits.shape)} for one image, wanted logits (1, {config.num_labels})"
        )
