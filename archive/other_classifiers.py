"""Image classifiers that are no ResNets, as transformers loads them: ViT, ConvNeXt, Swin, RegNet, timm's, ...

Their network is transformers' own, in the archive as at the checkpoint; nothing of it is known here but that it
takes images and gives logits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import AutoModelForImageClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from archive import timm_folders
from archive.class_labels import labels_of
from archive.preprocess_configs import read_preprocess, read_timm_preprocess
from archive.sources import CheckpointError, listed, read_json
from handlers import LOCAL
from handlers.images import Preprocess

if TYPE_CHECKING:
    from archive.image_checkpoints import ImageCheckpoint

# What a classifier can do without: a pooler that its head does not read, and the mask token of its pretraining.
_UNUSED = re.compile(r"(.*\.)?(pooler\..*|mask_token|position_ids)")


class OtherClassifier(NamedTuple):
    """state: of transformers' class for `config`, fp32, on the CPU. Else as of ImageCheckpoint."""

    layout: str
    config: Any
    state: dict[str, torch.Tensor]
    preprocess: Preprocess
    labels: tuple[str, ...] | None


def holds_one(beside: Mapping[str, object]) -> bool:
    """Whether a folder's config.json is of a classifier that transformers loads and that is no ResNet.

    Raises CheckpointError for one of timm's that is no plain ResNet, where timm is not installed.
    """
    if "architecture" in beside:
        objection = timm_folders.objection(beside)
        if objection and not timm_folders.installed():
            raise CheckpointError(f"{objection}; {timm_folders.WRAPPED}")
        return objection is not None
    kind = beside.get("model_type")
    return kind != "resnet" and kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES


def read(folder: Path, beside: Mapping[str, object]) -> OtherClassifier:
    """Read such a folder; beside: its config.json. Raises CheckpointError, with the names of what does not fit."""
    channels = beside.get("num_channels", 3)
    if channels != 3:
        raise CheckpointError(f"config.json says num_channels {channels!r}, wanted 3 (RGB)")
    timm = "architecture" in beside
    preprocess = read_timm_preprocess(timm_folders.pretrained_of(beside)) if timm else _preprocess(folder, beside)
    model = _load(folder)
    labels = labels_of(model.config.id2label)
    return OtherClassifier("timm" if timm else "huggingface", model.config, model.state_dict(), preprocess, labels)


def _preprocess(folder: Path, beside: Mapping[str, object]) -> Preprocess:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise CheckpointError(
            f"the folder has no preprocessor_config.json, and networks of type {beside.get('model_type')} were "
            "trained with one preprocessing or another. Wanted: that file, of the checkpoint that this one was made "
            "from, or written by AutoImageProcessor.save_pretrained"
        )
    return read_preprocess(read_json(path))


def _load(folder: Path) -> Any:
    options = {**LOCAL, "output_loading_info": True}
    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, **options, ignore_mismatched_sizes=True
        )
    except Exception as error:  # transformers', safetensors' and strict dataclasses' own; ImportError of timm
        raise CheckpointError(f"transformers cannot load it as an image classifier ({error})") from error
    missing = [name for name in sorted(report["missing_keys"]) if not name.endswith("num_batches_tracked")]
    unexpected = [name for name in sorted(report["unexpected_keys"]) if not _UNUSED.fullmatch(name)]
    problems = {
        "missing": missing,
        "unexpected": unexpected,
        "misshapen": [f"{name} is {tuple(a)}, wanted {tuple(b)}" for name, a, b in sorted(report["mismatched_keys"])],
        "not finite": [name for name, value in model.state_dict().items() if not value.isfinite().all()],
    }
    found = [f"{problem}: {listed(names)}" for problem, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"the weights are not those of a {type(model).__name__}. {'; '.join(found)}. "
            "A part that is missing would be random. Wanted: the whole classifier, as save_pretrained writes it"
        )
    return model.eval()


@torch.inference_mode()
def refuse_size(checkpoint: ImageCheckpoint, size: int) -> None:
    """Run the network once on a blank image of this many pixels a side.

    Raises CheckpointError where it takes other sizes only (ViT), or gives something else than a row of logits.
    """
    network = checkpoint.network()
    name, wanted = type(network).__name__, getattr(checkpoint.config, "image_size", None)
    try:
        logits = network(torch.zeros(1, 3, size, size)).logits
    except Exception as error:  # each network has its own words for it
        raise CheckpointError(
            f"{name} does not take images of {size} x {size} pixels, which --size or the checkpoint's preprocessing "
            f"asks for; its config.json says image_size {wanted} ({error})"
        ) from error
    if tuple(logits.shape) != (1, checkpoint.config.num_labels):
        raise CheckpointError(
            f"{name} gives {tuple(logits.shape)} for one image, wanted logits (1, {checkpoint.config.num_labels})"
        )
