"""Any image classifier's checkpoint -> a network of handlers.engines.networks, by transformers' names.

For packaging time: a worker never reads foreign checkpoints.
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
from archive.checkpoints.checkpoint_files import left_out, load_tensors, sha256
from archive.checkpoints.class_labels import labels_of, with_labels
from archive.checkpoints.foreign_settings import plain
from archive.checkpoints.preprocess_configs import folder_preprocess, read_preprocess, read_timm_preprocess
from archive.checkpoints.resnet_layouts import infer_config, layout_of, refuse_variants, served_state, unused
from archive.checkpoints.sources import CheckpointError, locate, read_json, refuse_custom_code, weight_file
from handlers.engines import networks
from handlers.images.preprocess import Preprocess

__all__ = ["CheckpointError", "ImageCheckpoint", "read", "read_preprocess", "read_timm_preprocess"]

# What of Hugging Face's config.json reaches the served one.
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

    config: transformers', complete, with num_labels as the classifier has it, id2label where the names are known.
    state: float32 and contiguous on the CPU, by the names of networks.build(config), whose
        load_state_dict(state, strict=True) takes it; of ResNets without the counters num_batches_tracked.
    preprocess: from the checkpoint's own files, None where they say nothing.
    labels: class names from the checkpoint's own config.json in index order, None where it has none.
    layout: "huggingface", "torchvision" or "timm", by the names of its weights.
    source: what was asked for, as given.
    weights: the file that the weights came from; of a sharded checkpoint, its index.
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
        """The network with these weights, in eval mode, fp32 on the CPU."""
        network = networks.build(self.config)
        network.load_state_dict(self.state)
        return network.eval()


class _Description(NamedTuple):
    """What the files beside the weights say."""

    layout: str
    config: ResNetConfig
    preprocess: Preprocess | None
    labels: tuple[str, ...] | None


def read(source: str | Path, revision: str | None = None) -> ImageCheckpoint:
    """Read an image classifier from a folder, a weight file or the Hugging Face Hub.

    source: a folder of Hugging Face's (config.json with a model_type) or of timm's (config.json with
        "architecture"), with model.safetensors or pytorch_model.bin, sharded or not; of a ResNet, ResNeXt or Wide
        ResNet also a file with a state dict (.safetensors, .pth, .pt, .bin, .ckpt, .tar) by torchvision's, timm's
        or Hugging Face's names, bare or in a training checkpoint, where averaged (EMA) weights come before plain
        ones; or a Hub id.
    revision: branch, tag or commit; for a Hub id only.

    Shapes tell a ResNet's architecture where no config.json of Hugging Face's does. Strides and dilations are not
    in the weights: those are taken as torchvision's (v1.5).

    Raises CheckpointError for whatever cannot be read or served, by the checkpoint's own names.
    """
    try:
        path = locate(source, revision)
        weights = weight_file(path) if path.is_dir() else path
        beside = _config_beside(path)
        refuse_custom_code(beside, "config.json")
        beside = plain(beside)
        if path.is_dir() and other_classifiers.holds_one(beside):
            parts: dict[str, Any] = other_classifiers.read(path, beside)._asdict()
        else:
            parts = _read_resnet(path, weights, beside)
        return ImageCheckpoint(**parts, source=str(source), weights=weights, sha256=sha256(weights))
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def _read_resnet(path: Path, weights: Path, beside: Mapping[str, object]) -> dict[str, Any]:
    tensors, prefix = load_tensors(weights)
    try:
        described = _describe(tensors, beside, path)
        if described.layout != "huggingface":
            return {**described._asdict(), "state": served_state(tensors, "torchvision", described.config)}
        # As transformers does; of a file without config.json the weights alone say what it is.
        extra = unused(tensors, described.config) if beside else []
        used = {name: value for name, value in tensors.items() if name not in set(extra)}
        notes = left_out(extra, "ResNetForImageClassification")
        return {**described._asdict(), "state": served_state(used, "huggingface", described.config), "notes": notes}
    except CheckpointError as error:
        stripped = f"(names without their prefix {prefix!r}) " if prefix else ""
        raise CheckpointError(f"{stripped}{error}") from error


def _config_beside(path: Path) -> dict[str, object]:
    """config.json of the folder, or of the folder around the file; empty where a file has none beside it."""
    folder = path if path.is_dir() else path.parent
    if (folder / "config.json").is_file():
        return read_json(folder / "config.json")
    if path.is_dir():
        raise CheckpointError(
            "the folder has no config.json, so it is neither Hugging Face's nor timm's. "
            "Of a state dict alone, give the file itself"
        )
    return {}


def _describe(tensors: Mapping[str, torch.Tensor], beside: Mapping[str, object], path: Path) -> _Description:
    """What the weights are, told by their names and by config.json."""
    # timm's older files have no pretrained_cfg; beside a single file, "architecture" alone may mean anything.
    is_timm = timm_folders.is_timm(beside) and (path.is_dir() or "pretrained_cfg" in beside)
    if path.is_dir() and not is_timm:
        _refuse_model_type(beside)
    objection = timm_folders.objection(beside) if is_timm else None
    if objection:
        raise CheckpointError(f"{objection}; {timm_folders.WRAPPED}")
    layout = layout_of(tensors)
    refuse_variants(tensors, layout)
    if path.is_dir() and is_timm == (layout == "huggingface"):
        raise CheckpointError(
            f"config.json is {'timm' if is_timm else 'Hugging Face'}'s, the weights have {layout}'s names. "
            "Give the weight file alone, in a folder of its own"
        )
    if layout == "huggingface":
        return _describe_huggingface(tensors, {} if is_timm else beside, path)
    inferred = infer_config(tensors, layout)
    if not is_timm:
        return _Description(layout, inferred, None, None)
    preprocess, labels = timm_folders.describe(beside, cast("int", inferred.num_labels))
    return _Description("timm", with_labels(inferred, labels), preprocess, labels)


def _describe_huggingface(
    tensors: Mapping[str, torch.Tensor], beside: Mapping[str, object], path: Path
) -> _Description:
    if not beside:
        return _Description("huggingface", infer_config(tensors, "huggingface"), None, None)
    _refuse_model_type(beside)
    config, labels = _served_config(beside)
    preprocess = folder_preprocess(path if path.is_dir() else path.parent)
    return _Description("huggingface", config, preprocess, labels)


def _refuse_model_type(beside: Mapping[str, object]) -> None:
    if beside.get("model_type") != "resnet":
        raise CheckpointError(
            f"config.json says model_type {beside.get('model_type')!r}, of which transformers "
            f"{transformers.__version__} has no image classifier. Wanted: 'resnet', another that "
            "AutoModelForImageClassification knows, or timm's, with an architecture"
        )


def _served_config(beside: Mapping[str, object]) -> tuple[ResNetConfig, tuple[str, ...] | None]:
    """Hugging Face's config.json -> (the same architecture without stale or foreign settings, its labels)."""
    try:
        found = ResNetConfig.from_dict(dict(beside))
    except Exception as error:  # strict dataclasses raise their own errors besides ValueError and TypeError
        raise CheckpointError(f"config.json does not describe a ResNet ({error})") from error
    if found.num_channels != 3:
        raise CheckpointError(f"config.json says num_channels {found.num_channels}, wanted 3 (RGB)")
    labels = labels_of(cast("dict[int, str]", found.id2label))
    settings = {name: getattr(found, name) for name in _SETTINGS}
    settings |= {"architectures": ["ResNetForImageClassification"], **networks.broader(networks.breadth(found))}
    return with_labels(ResNetConfig.from_dict(settings), labels), labels
