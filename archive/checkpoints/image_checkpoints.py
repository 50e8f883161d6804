"""Reads an image classifier's checkpoint of any layout into a network of handlers.engines.networks.

This is for packaging. A worker reads only what packaging wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import transformers
from transformers import ResNetConfig

from archive.checkpoints import other_classifiers, timm_folders
from archive.checkpoints.class_labels import labels_of, with_labels
from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.image_configs import without_actions
from archive.checkpoints.json_files import read_json, refuse_custom_code
from archive.checkpoints.locations import locate, weight_file
from archive.checkpoints.preprocess_configs import folder_preprocess
from archive.checkpoints.resnet_layouts import infer_config, layout_of, refuse_variants, served_state, unused
from archive.checkpoints.weight_checks import unused_note
from archive.checkpoints.weight_files import load_tensors, sha256
from handlers.engines import networks
from handlers.images.preprocess import Preprocess

# Settings of Hugging Face's config.json that go into the served one.
_SETTINGS = (
    "num_channels",
    "embedding_size",
    "hidden_sizes",
    "depths",
    "layer_type",
    "hidden_act",
    "downsample_in_first_stage",
    "downsample_in_bottleneck",
    "problem_type",
    "num_labels",
)


@dataclass(frozen=True)
class ImageCheckpoint:
    """A checkpoint as the served architecture takes it.

    Attributes:
        config: complete configuration of transformers, with num_labels as the classifier has it, and id2label if the
            names are known.
        state: weights in float32, contiguous on the CPU, by the names of networks.build(config), whose
            load_state_dict(state, strict=True) takes it. That of a ResNet has no counters num_batches_tracked.
        preprocess: from the checkpoint's own files; None if they say nothing.
        labels: class names from the checkpoint's own config.json in index order; None if it has none.
        layout: "huggingface", "torchvision", "timm" or "random", by the names of its weights.
        source: what was asked for, as given.
        weights: the file that the weights came from; the index of a sharded checkpoint.
        sha256: of that file, in hex; of a sharded checkpoint, of the index and then its shards in name order.
        notes: what was left out or assumed, for people.
    """

    config: Any
    state: dict[str, torch.Tensor]
    preprocess: Preprocess | None
    labels: tuple[str, ...] | None
    layout: str
    source: str
    weights: Path
    sha256: str
    notes: tuple[str, ...] = ()

    def network(self) -> Any:
        """Build the network with these weights, in eval mode, fp32 on the CPU."""
        network = networks.build(self.config)
        network.load_state_dict(self.state)
        return network.eval()


class _Description(NamedTuple):
    """What the weights' names and the files in their folder say."""

    layout: str
    config: ResNetConfig
    preprocess: Preprocess | None
    labels: tuple[str, ...] | None


def read(source: str | Path, revision: str | None = None) -> ImageCheckpoint:
    """Read an image classifier from a folder, a weight file or the Hugging Face Hub.

    The shapes of a ResNet's weights tell its architecture if no config.json of Hugging Face does. Strides and
    dilations are not in the weights: they are taken as torchvision's (v1.5).

    Args:
        source: one of
            - a Hub id;
            - a folder of Hugging Face's layout (config.json with a model_type) or timm's (config.json with
              "architecture"), with model.safetensors or pytorch_model.bin, sharded or not;
            - for ResNet, ResNeXt and Wide ResNet a file with a state dict (.safetensors, .pth, .pt, .bin, .ckpt,
              .tar) by torchvision's, timm's or Hugging Face's names, bare or in a training checkpoint. Averaged
              (EMA) weights are taken before plain ones.
        revision: branch, tag or commit; for a Hub id only.

    Raises:
        CheckpointError: for whatever cannot be read or served, by the checkpoint's own names.
    """
    try:
        path = locate(source, revision)
        weights = weight_file(path) if path.is_dir() else path
        config_json = _config_json_of(path)
        refuse_custom_code(config_json, "config.json")
        config_json = without_actions(config_json)
        if path.is_dir() and other_classifiers.is_other_classifier(config_json):
            parts: dict[str, Any] = other_classifiers.read(path, config_json)._asdict()
        else:
            parts = _read_resnet(path, weights, config_json)
        return ImageCheckpoint(**parts, source=str(source), weights=weights, sha256=sha256(weights))
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def _read_resnet(path: Path, weights: Path, config_json: Mapping[str, object]) -> dict[str, Any]:
    tensors, prefix = load_tensors(weights)
    try:
        described = _describe(tensors, config_json, path)
        if described.layout != "huggingface":
            return {**described._asdict(), "state": served_state(tensors, "torchvision", described.config)}
        # transformers leaves unused weights out too. Without config.json the weights alone say what the file is.
        extra = unused(tensors, described.config) if config_json else []
        used = {name: value for name, value in tensors.items() if name not in set(extra)}
        notes = unused_note(extra, "ResNetForImageClassification")
        return {**described._asdict(), "state": served_state(used, "huggingface", described.config), "notes": notes}
    except CheckpointError as error:
        stripped = f"(names without their prefix {prefix!r}) " if prefix else ""
        raise CheckpointError(f"{stripped}{error}") from error


def _config_json_of(path: Path) -> dict[str, object]:
    """Return config.json of the folder, or of the file's folder; empty if that has none."""
    folder = path if path.is_dir() else path.parent
    if (folder / "config.json").is_file():
        return read_json(folder / "config.json")
    if path.is_dir():
        raise CheckpointError(
            "the folder has no config.json, so it is neither Hugging Face's nor timm's. "
            "If it holds a state dict alone, give the file itself"
        )
    return {}


def _describe(tensors: Mapping[str, torch.Tensor], config_json: Mapping[str, object], path: Path) -> _Description:
    """Tell by their names and by config.json what the weights are."""
    # timm's older folders have no pretrained_cfg. Next to a single file, "architecture" alone may mean anything.
    is_timm = timm_folders.is_timm(config_json) and (path.is_dir() or "pretrained_cfg" in config_json)
    if path.is_dir() and not is_timm:
        _refuse_model_type(config_json)
    reason = timm_folders.why_not_plain_resnet(config_json) if is_timm else None
    if reason:
        raise CheckpointError(f"{reason}; {timm_folders.WRAPPED}")
    layout = layout_of(tensors)
    refuse_variants(tensors, layout)
    if path.is_dir() and is_timm == (layout == "huggingface"):
        raise CheckpointError(
            f"config.json is {'timm' if is_timm else 'Hugging Face'}'s, the weights have {layout}'s names. "
            "Give the weight file alone, in a folder of its own"
        )
    if layout == "huggingface":
        return _describe_huggingface(tensors, {} if is_timm else config_json, path)
    inferred = infer_config(tensors, layout)
    if not is_timm:
        return _Description(layout, inferred, None, None)
    preprocess, labels = timm_folders.describe(config_json, cast("int", inferred.num_labels))
    return _Description("timm", with_labels(inferred, labels), preprocess, labels)


def _describe_huggingface(
    tensors: Mapping[str, torch.Tensor], config_json: Mapping[str, object], path: Path
) -> _Description:
    if not config_json:
        return _Description("huggingface", infer_config(tensors, "huggingface"), None, None)
    _refuse_model_type(config_json)
    config, labels = _served_config(config_json)
    preprocess = folder_preprocess(path if path.is_dir() else path.parent)
    return _Description("huggingface", config, preprocess, labels)


def _refuse_model_type(config_json: Mapping[str, object]) -> None:
    if config_json.get("model_type") != "resnet":
        raise CheckpointError(
            f"config.json says model_type {config_json.get('model_type')!r}, for which transformers "
            f"{transformers.__version__} has no image classifier. Wanted: 'resnet', another that "
            "AutoModelForImageClassification knows, or timm's, with an architecture. For a model of texts use the "
            "command text-encoder"
        )


def _served_config(config_json: Mapping[str, object]) -> tuple[ResNetConfig, tuple[str, ...] | None]:
    """Return Hugging Face's config.json without settings that do not describe the network, and its labels."""
    try:
        found = ResNetConfig.from_dict(dict(config_json))
    except Exception as error:  # strict dataclasses raise their own errors besides ValueError and TypeError
        raise CheckpointError(f"config.json does not describe a ResNet ({error})") from error
    if found.num_channels != 3:
        raise CheckpointError(f"config.json says num_channels {found.num_channels}, wanted 3 (RGB)")
    labels = labels_of(cast("dict[int, str]", found.id2label))
    settings = {name: getattr(found, name) for name in _SETTINGS}
    settings |= {"architectures": ["ResNetForImageClassification"], **networks.broader(networks.breadth(found))}
    return with_labels(ResNetConfig.from_dict(settings), labels), labels
