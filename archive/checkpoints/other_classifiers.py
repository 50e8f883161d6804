"""Image classifiers that are no ResNets, as transformers loads them: ViT, ConvNeXt, Swin, RegNet, timm's, ...

Their network is transformers' own, in the archive as at the checkpoint; nothing of it is known here but that it
takes images and gives logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from archive.checkpoints import timm_folders
from archive.checkpoints.checkpoint_files import beyond, left_out, load_tensors
from archive.checkpoints.class_labels import labels_of
from archive.checkpoints.preprocess_configs import folder_preprocess, read_timm_preprocess
from archive.checkpoints.resnet_layouts import FLOATS
from archive.checkpoints.sources import CheckpointError, listed, weight_file
from handlers import LOCAL
from handlers.engines import networks
from handlers.images.preprocess import Preprocess

if TYPE_CHECKING:
    from archive.checkpoints.image_checkpoints import ImageCheckpoint

# Buffers may be numbered or masks; what is multiplied may not.
_WHOLE = (torch.int64, torch.int32, torch.bool)


class OtherClassifier(NamedTuple):
    """state: of transformers' class for `config`, fp32, on the CPU. Else as of ImageCheckpoint."""

    layout: str
    config: Any
    state: dict[str, torch.Tensor]
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    notes: tuple[str, ...]


def holds_one(beside: Mapping[str, object]) -> bool:
    """Whether a folder's config.json is of a classifier that transformers loads and that is no ResNet.

    Raises CheckpointError for one of timm's that is no plain ResNet, where timm cannot be imported.
    """
    if timm_folders.is_timm(beside):
        objection = timm_folders.objection(beside)
        if objection and (problem := networks.timm_problem()):
            raise CheckpointError(f"{objection}; {timm_folders.WRAPPED}, and {problem}")
        return objection is not None
    kind = beside.get("model_type")
    return kind != "resnet" and kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES


def read(folder: Path, beside: Mapping[str, object]) -> OtherClassifier:
    """Read such a folder; beside: its config.json. Raises CheckpointError, with the names of what does not fit."""
    channels = beside.get("num_channels", 3)
    if channels != 3:
        raise CheckpointError(f"config.json says num_channels {channels!r}, wanted 3 (RGB)")
    timm = timm_folders.is_timm(beside)
    preprocess = read_timm_preprocess(timm_folders.pretrained_of(beside)) if timm else preprocess_of(folder, beside)
    served = timm_folders.served_config(beside) if timm else beside
    model, notes = _load(folder, served)
    if timm:
        _refuse_timm(model, beside)
    labels = labels_of(model.config.id2label)
    if timm and labels and "label_names" not in served:
        notes += (f"the checkpoint does not name its {len(labels)} classes: timm's names of ImageNet's are assumed",)
    layout = "timm" if timm else "huggingface"
    return OtherClassifier(layout, model.config, model.state_dict(), preprocess, labels, notes)


def _refuse_timm(model: Any, beside: Mapping[str, object]) -> None:
    """Raises CheckpointError for another pooling than config.json's, and for what safetensors cannot hold."""
    said, built = beside.get("global_pool"), _pooling(model.timm_model)
    if isinstance(said, str) and built is not None and said != built:
        raise CheckpointError(
            f"config.json says global_pool {said!r}, and timm builds {built!r} from its model_args. Wanted: "
            "global_pool among model_args, as timm 1.0.31 and newer save it"
        )
    places = [value.data_ptr() for value in model.state_dict().values() if value.numel()]
    if len(set(places)) < len(places):
        raise CheckpointError(
            f"{beside['architecture']} shares weights between layers, and transformers cannot save that of timm's"
        )


def _pooling(network: Any) -> str | None:
    """What timm says of a network's pooling, in its head or outside it; None if it says nothing in words."""
    places = [(getattr(network, "head", None), "global_pool"), (network, "global_pool")]
    held = [getattr(holder, name, None) for holder, name in places]
    words = [getattr(pooling, "pool_type", pooling) for pooling in held]
    return next((word for word in words if isinstance(word, str)), None)


def preprocess_of(folder: Path, beside: Mapping[str, object]) -> Preprocess:
    """A folder's preprocessing. Raises CheckpointError if its files do not say it. beside: its config.json."""
    found = folder_preprocess(folder)
    if found is None:
        raise CheckpointError(
            "the folder has no preprocessor_config.json and no processor_config.json with an image_processor, and "
            f"networks of type {beside.get('model_type')} were trained with one preprocessing or another. "
            "Wanted: that file, from the checkpoint that this one was made from, or as AutoImageProcessor saves it"
        )
    return found


def _load(folder: Path, served: Mapping[str, object]) -> tuple[Any, tuple[str, ...]]:
    """The network with the folder's weights, and notes. Nothing but `served` and the weight file is read."""
    tensors, _ = load_tensors(weight_file(folder))
    try:
        config = CONFIG_MAPPING[str(served["model_type"])].from_dict(dict(served))
        network_class = networks.class_of(config)
    except Exception as error:  # strict dataclasses' own
        raise CheckpointError(f"transformers cannot load it as an image classifier ({error})") from error
    config.architectures = [network_class.__name__]
    return load_network(tensors, config, network_class, "an image classifier")


def load_network(
    tensors: dict[str, torch.Tensor], config: Any, network_class: Any, what: str
) -> tuple[Any, tuple[str, ...]]:
    """The network with these weights, and notes of what was left out.

    Args:
        tensors: by the checkpoint's names.
        config: transformers' configuration.
        network_class: transformers' class.
        what: it is, for messages.

    Raises CheckpointError for weights that do not make the whole network.
    """
    _refuse_dtypes(tensors)
    try:
        model, report = network_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32, ignore_mismatched_sizes=True,
            output_loading_info=True, **LOCAL,
        )  # fmt: skip
    except Exception as error:  # transformers' and strict dataclasses' own; whatever a network's builder trips over
        raise CheckpointError(f"transformers cannot load it as {what} ({error})") from error
    _refuse_misfits(model, report)
    return model.eval(), left_out(sorted(report["unexpected_keys"]), type(model).__name__)


def _refuse_misfits(model: Any, report: Mapping[str, Any]) -> None:
    """Raises CheckpointError, with their names, for weights that do not make the whole network."""
    state, unexpected = model.state_dict(), sorted(report["unexpected_keys"])
    problems = {
        "missing": [name for name in sorted(report["missing_keys"]) if not name.endswith("num_batches_tracked")],
        "of more layers than config.json has": beyond(unexpected, state),
        "misshapen": [f"{name} is {tuple(a)}, wanted {tuple(b)}" for name, a, b in sorted(report["mismatched_keys"])],
        "not finite": [name for name, value in state.items() if not value.isfinite().all()],
    }
    if any(problems.values()):
        problems["unexpected"] = unexpected  # may be what is missing, under a wrong name
        found = [f"{problem}: {listed(names)}" for problem, names in problems.items() if names]
        raise CheckpointError(
            f"the weights are not those of a {type(model).__name__}. {'; '.join(found)}. "
            "A part that is missing would be random. Wanted: the whole network, as save_pretrained writes it"
        )


def _refuse_dtypes(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises CheckpointError for quantized or sparse weights, which transformers would take for plain numbers."""
    wrong = [
        f"{name} ({value.dtype})"
        for name, value in tensors.items()
        if value.layout != torch.strided
        or (value.dtype not in FLOATS and (value.dtype not in _WHOLE or name.endswith((".weight", ".bias"))))
    ]
    if wrong:
        raise CheckpointError(
            f"not dense floating-point weights: {listed(wrong)}. Wanted: {listed(map(str, FLOATS))}; "
            "of a quantised model, save the float weights that it was made from"
        )


@torch.inference_mode()
def refuse_size(checkpoint: ImageCheckpoint, height: int, width: int) -> None:
    """Run the network once on a blank image of this height and width, in pixels.

    Raises CheckpointError where it takes other sizes only (ViT), or gives something else than a row of logits.
    """
    network = checkpoint.network()
    name, wanted = type(network).__name__, getattr(checkpoint.config, "image_size", None)
    try:
        output = network(torch.zeros(1, 3, height, width))
    except Exception as error:  # each network has its own words for it
        raise CheckpointError(
            f"{name} does not take images of {width} x {height} pixels, which --size or the checkpoint's "
            f"preprocessing asks for; its config.json says image_size {wanted} ({error})"
        ) from error
    logits = getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise CheckpointError(f"{name} gives {type(output).__name__} for one image, wanted logits")
    if tuple(logits.shape) != (1, checkpoint.config.num_labels):
        raise CheckpointError(
            f"{name} gives {tuple(logits.shape)} for one image, wanted logits (1, {checkpoint.config.num_labels})"
        )
