"""timm's config.json: whether its architecture is a ResNet as torchvision has it, its classes, its preprocessing."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping

from archive.class_labels import labels_of
from archive.preprocess_configs import read_timm_preprocess
from archive.sources import CheckpointError
from handlers.images import Preprocess

# Of timm's names those whose every layer is torchvision's; anti-aliased ones have the same weight names.
_PLAIN = re.compile(
    r"((tv|ssl|swsl|ig)_)?(resnet\d+|resnext\d+_\d+x\d+d)|wide_resnet\d+_\d+|gluon_(resnet\d+_v1b|resnext\d+_\d+x\d+d)"
)
_REASONS = (
    (r"resnetv2", "pre-activation blocks"),
    (r"blur|aa\d", "anti-aliased downsampling"),
    (r"^(gluon_)?se|^eca|^skresnet|resnetrs", "attention in its blocks"),
    (r"_gn$", "GroupNorm"),
    (r"resnex?t\d+[cdst](_|$)|_v1[cds]$", "a deep stem"),
)
# Arguments of timm.create_model that change nothing of a trained network's output; the sizes are checked.
_HARMLESS = {
    "num_classes",
    "in_chans",
    "drop_rate",
    "drop_path_rate",
    "drop_block_rate",
    "zero_init_last",
    "cardinality",
    "base_width",
}
WRAPPED = "where timm and torchvision are installed, its folder is served through transformers' timm_wrapper"


def installed() -> bool:
    """Whether timm is there, without importing it."""
    return importlib.util.find_spec("timm") is not None


def objection(beside: Mapping[str, object]) -> str | None:
    """Why the network in timm's config.json is no ResNet, ResNeXt or Wide ResNet of torchvision's, or None."""
    # A name may carry the tag of its weights: resnet101.a1h_in1k.
    name = str(beside["architecture"]).split(".")[0]
    if not _PLAIN.fullmatch(name):
        reason = next((reason for pattern, reason in _REASONS if re.search(pattern, name)), None)
        return f"timm architecture {name!r} {f'has {reason}' if reason else 'is no plain ResNet, such as resnet101'}"
    arguments = mapping(beside, "model_args")
    odd = [f"{key}={value!r}" for key, value in arguments.items() if key not in _HARMLESS]
    odd = [argument for argument in odd if argument != "global_pool='avg'"]
    if beside.get("global_pool", "avg") != "avg":
        odd.append(f"global_pool={beside['global_pool']!r}")
    return f"config.json asks timm for {', '.join(odd)}, which no plain ResNet has" if odd else None


def describe(beside: Mapping[str, object], classes: int) -> tuple[Preprocess, tuple[str, ...] | None]:
    """Preprocessing and class names, for weights with this many classes. Raises CheckpointError."""
    pretrained = pretrained_of(beside)
    said = beside.get("num_classes", pretrained.get("num_classes", classes))
    if said != classes:
        raise CheckpointError(f"fc.weight has {classes} rows, config.json says num_classes {said!r}")
    return read_timm_preprocess(pretrained), _labels(beside, pretrained, classes)


def pretrained_of(beside: Mapping[str, object]) -> Mapping[str, object]:
    """The settings that the weights were trained with; in timm's older files config.json as a whole is those."""
    return mapping(beside, "pretrained_cfg") if "pretrained_cfg" in beside else beside


def _labels(beside: Mapping[str, object], pretrained: Mapping[str, object], classes: int) -> tuple[str, ...] | None:
    found = beside.get("label_names") or pretrained.get("label_names") or beside.get("labels")
    if not found:
        return None
    if not isinstance(found, list) or len(found) != classes:
        count = f"{len(found)} of them" if isinstance(found, list) else f"a {type(found).__name__}"
        raise CheckpointError(f"label_names in config.json: {count}, wanted a list of {classes}")
    return labels_of(dict(enumerate(found)))


def mapping(config: Mapping[str, object], key: str) -> Mapping[str, object]:
    """An object in config.json; empty where it is missing or null."""
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{key} in config.json is a {type(value).__name__}, wanted an object")
    return value
