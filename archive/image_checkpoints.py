"""Any ResNet image classifier's checkpoint -> the one architecture served, ResNetForImageClassification.

For packaging time: a worker never reads foreign checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from transformers import ResNetConfig

from archive.checkpoint_files import load_tensors, sha256
from archive.preprocess_configs import read_preprocess, read_timm_preprocess
from archive.resnet_layouts import infer_config, layout_of, refuse_variants, served_state
from archive.sources import CheckpointError, locate, read_json, weight_file
from handlers.images import Preprocess

__all__ = ["CheckpointError", "ImageCheckpoint", "read", "read_preprocess", "read_timm_preprocess"]

# Of timm's names those whose every layer is torchvision's; anti-aliased ones have the same weight names.
_TIMM_PLAIN = re.compile(r"(?:(?:tv|ssl|swsl)_)?resnet\d+|gluon_resnet\d+_v1b")
_TIMM_REASONS = (
    (r"resnext", "grouped convolutions"),
    (r"^wide_", "wider bottlenecks"),
    (r"resnetv2", "pre-activation blocks"),
    (r"blur|aa\d", "anti-aliased downsampling"),
    (r"^(gluon_)?se|^eca|^skresnet|resnetrs", "attention in its blocks"),
    (r"_gn$", "GroupNorm"),
    (r"resnet\d+[cdst]$|_v1[cds]$", "a deep stem"),
)
# Arguments of timm.create_model that change nothing of a trained network's output; the sizes are checked.
_TIMM_HARMLESS = {
    "num_classes",
    "in_chans",
    "drop_rate",
    "drop_path_rate",
    "drop_block_rate",
    "zero_init_last",
}

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

    config: complete, with num_labels as the classifier has it, id2label where the names are known.
    state: float32 and contiguous on the CPU, by the names of ResNetForImageClassification(config), whose
        load_state_dict(state, strict=True) takes it; without the counters num_batches_tracked.
    preprocess: from the checkpoint's own files, None where they say nothing.
    labels: class names from the checkpoint's own config.json in index order, None where it has none.
    layout: "huggingface", "torchvision" or "timm", by the names of its weights.
    source: what was asked for, as given.
    weights: the file that the weights came from; of a sharded checkpoint, its index.
    sha256: of that file, in hex; of a sharded checkpoint, of the index and then its shards in name order.
    """

    config: ResNetConfig
    state: dict[str, torch.Tensor]
    preprocess: Preprocess | None
    labels: tuple[str, ...] | None
    layout: str
    source: str
    weights: Path
    sha256: str


class _Description(NamedTuple):
    """What the files beside the weights say."""

    layout: str
    config: ResNetConfig
    preprocess: Preprocess | None
    labels: tuple[str, ...] | None


def read(source: str | Path, revision: str | None = None) -> ImageCheckpoint:
    """Read a ResNet classifier from a folder, a weight file or the Hugging Face Hub.

    source: a folder of Hugging Face's (config.json with model_type "resnet") or of timm's (config.json with
        "architecture"), with model.safetensors or pytorch_model.bin, sharded or not; a file with a state dict
        (.safetensors, .pth, .pt, .bin, .ckpt, .tar) by torchvision's, timm's or Hugging Face's names, bare or
        in a training checkpoint, where averaged (EMA) weights come before plain ones; or a Hub id.
    revision: branch, tag or commit; for a Hub id only.

    Shapes tell the architecture where no config.json of Hugging Face's does. Strides and dilations are not in
    the weights: those are taken as torchvision's (v1.5).

    Raises CheckpointError for whatever cannot be read or served, by the checkpoint's own names.
    """
    prefix = ""
    try:
        path = locate(source, revision)
        weights = weight_file(path) if path.is_dir() else path
        beside = _config_beside(path)
        tensors, prefix = load_tensors(weights)
        described = _describe(tensors, beside, path)
        layout = "huggingface" if described.layout == "huggingface" else "torchvision"
        state = served_state(tensors, layout, described.config)
        return ImageCheckpoint(
            **described._asdict(), state=state, source=str(source), weights=weights, sha256=sha256(weights)
        )
    except (CheckpointError, OSError) as error:
        stripped = f" (names without their prefix {prefix!r})" if prefix else ""
        raise CheckpointError(f"{source}{stripped}: {error}") from error


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
    is_timm = "architecture" in beside and (path.is_dir() or "pretrained_cfg" in beside)
    if path.is_dir() and not is_timm:
        _refuse_model_type(beside)
    if is_timm:
        _refuse_timm_architecture(beside)
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
    return _describe_timm(beside, inferred) if is_timm else _Description(layout, inferred, None, None)


def _describe_huggingface(
    tensors: Mapping[str, torch.Tensor], beside: Mapping[str, object], path: Path
) -> _Description:
    if not beside:
        return _Description("huggingface", infer_config(tensors, "huggingface"), None, None)
    _refuse_model_type(beside)
    config, labels = _served_config(beside)
    folder = path if path.is_dir() else path.parent
    processor = folder / "preprocessor_config.json"
    preprocess = read_preprocess(read_json(processor)) if processor.is_file() else None
    return _Description("huggingface", config, preprocess, labels)


def _refuse_model_type(beside: Mapping[str, object]) -> None:
    if beside.get("model_type") != "resnet":
        raise CheckpointError(
            f"config.json says model_type {beside.get('model_type')!r}, wanted 'resnet' "
            "(or timm's, with an architecture)"
        )


def _served_config(beside: Mapping[str, object]) -> tuple[ResNetConfig, tuple[str, ...] | None]:
    """Hugging Face's config.json -> (the same architecture without stale or foreign settings, its labels)."""
    try:
        found = ResNetConfig.from_dict(dict(beside))
    except Exception as error:  # strict dataclasses raise their own errors besides ValueError and TypeError
        raise CheckpointError(f"config.json does not describe a ResNet ({error})") from error
    if found.num_channels != 3:
        raise CheckpointError(f"config.json says num_channels {found.num_channels}, wanted 3 (RGB)")
    labels = _labels(cast("dict[int, str]", found.id2label))
    settings = {name: getattr(found, name) for name in _SETTINGS}
    settings["architectures"] = ["ResNetForImageClassification"]
    return _with_labels(ResNetConfig.from_dict(settings), labels), labels


def _labels(id2label: Mapping[int, object]) -> tuple[str, ...] | None:
    """Class names in index order; None where they are the placeholders LABEL_0, LABEL_1, ..."""
    if sorted(id2label) != list(range(len(id2label))):
        raise CheckpointError(f"id2label in config.json must number its {len(id2label)} classes from 0")
    names = tuple(str(id2label[index]) for index in range(len(id2label)))
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def _with_labels(config: ResNetConfig, labels: tuple[str, ...] | None) -> ResNetConfig:
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    return config


def _refuse_timm_architecture(beside: Mapping[str, object]) -> None:
    # A name may carry the tag of its weights: resnet101.a1h_in1k.
    name = str(beside["architecture"]).split(".")[0]
    if not _TIMM_PLAIN.fullmatch(name):
        reason = next((reason for pattern, reason in _TIMM_REASONS if re.search(pattern, name)), None)
        raise CheckpointError(
            f"timm architecture {name!r}{f' has {reason}' if reason else ''}: "
            "ResNetForImageClassification cannot express it. Wanted: a plain one, such as resnet101"
        )
    arguments = _mapping(beside, "model_args")
    odd = [f"{key}={value!r}" for key, value in arguments.items() if key not in _TIMM_HARMLESS]
    odd = [argument for argument in odd if argument != "global_pool='avg'"]
    if beside.get("global_pool", "avg") != "avg":
        odd.append(f"global_pool={beside['global_pool']!r}")
    if odd:
        raise CheckpointError(f"config.json asks timm for {', '.join(odd)}, which cannot be served")


def _describe_timm(beside: Mapping[str, object], config: ResNetConfig) -> _Description:
    # In timm's older files config.json as a whole is the pretrained_cfg.
    pretrained = _mapping(beside, "pretrained_cfg") if "pretrained_cfg" in beside else beside
    rows = cast("int", config.num_labels)
    classes = beside.get("num_classes", pretrained.get("num_classes", rows))
    if classes != rows:
        raise CheckpointError(f"fc.weight has {rows} rows, config.json says num_classes {classes!r}")
    labels = _timm_labels(beside, pretrained, rows)
    return _Description("timm", _with_labels(config, labels), read_timm_preprocess(pretrained), labels)


def _timm_labels(
    beside: Mapping[str, object], pretrained: Mapping[str, object], classes: int
) -> tuple[str, ...] | None:
    found = beside.get("label_names") or pretrained.get("label_names") or beside.get("labels")
    if not found:
        return None
    if not isinstance(found, list) or len(found) != classes:
        count = f"{len(found)} of them" if isinstance(found, list) else f"a {type(found).__name__}"
        raise CheckpointError(f"label_names in config.json: {count}, wanted a list of {classes}")
    return _labels(dict(enumerate(found)))


def _mapping(config: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{key} in config.json is a {type(value).__name__}, wanted an object")
    return value
