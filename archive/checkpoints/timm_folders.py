"""Reads timm's config.json: whether its architecture is a ResNet as torchvision has it, classes, preprocessing.

transformers' timm_wrapper runs any other architecture of timm. It passes config.json on to timm.create_model.
`served_config` keeps what builds the network, and nothing that makes timm fetch or read other files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from archive.checkpoints.class_labels import labels_of, names_in, placeholders
from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.preprocess_configs import read_timm_preprocess, timm_size
from handlers.images.preprocess import Preprocess

# timm's names of networks whose layers are all torchvision's. Anti-aliased networks have the same weight names.
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
# Arguments of timm.create_model that do not change a trained network's output. The weights' shapes are checked.
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
# Parameters of timm.create_model and timm.models.build_model_with_cfg that not every network takes. They name other
# weights, files and caches, or ask for something else than a classifier.
REFUSED_ARGUMENTS = {
    "cache_dir",
    "checkpoint_path",
    "exportable",
    "feature_cfg",
    "feature_cls",
    "features_only",
    "kwargs_filter",
    "model_cfg",
    "model_cls",
    "model_name",
    "no_jit",
    "out_indices",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_filter_fn",
    "pretrained_model_args",
    "pretrained_strict",
    "pruned",
    "scriptable",
    "variant",
}
# A name in timm's registry, with or without the tag of its weights. Other names have a source and a colon, or a path.
_REGISTERED = re.compile(r"\w+(\.\w+)*", re.ASCII)
# Keys of pretrained_cfg that the served config.json keeps, for people and for transformers' image processor.
_PREPROCESSING = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "tag", "fixed_input_size")
WRAPPED = "if timm and torchvision are installed, its folder is served through transformers' timm_wrapper"


def why_not_plain_resnet(config_json: Mapping[str, object]) -> str | None:
    """Return why the network in timm's config.json is no ResNet, ResNeXt or Wide ResNet of torchvision's, or None."""
    # A name may carry the tag of its weights: resnet101.a1h_in1k.
    name = str(config_json.get("architecture")).split(".")[0]
    if not _PLAIN.fullmatch(name):
        reason = next((reason for pattern, reason in _REASONS if re.search(pattern, name)), None)
        return f"timm architecture {name!r} {f'has {reason}' if reason else 'is no plain ResNet, such as resnet101'}"
    arguments = mapping(config_json, "model_args")
    odd = [f"{key}={value!r}" for key, value in arguments.items() if key not in _HARMLESS]
    odd = [argument for argument in odd if argument != "global_pool='avg'"]
    if config_json.get("global_pool", "avg") != "avg":
        odd.append(f"global_pool={config_json['global_pool']!r}")
    return f"config.json asks timm for {', '.join(odd)}, which no plain ResNet has" if odd else None


def describe(config_json: Mapping[str, object], classes: int) -> tuple[Preprocess, tuple[str, ...] | None]:
    """Return preprocessing and class names. Raises CheckpointError if config.json has another number of classes."""
    pretrained = pretrained_of(config_json)
    configured = config_json.get("num_classes", pretrained.get("num_classes", classes))
    if configured != classes:
        raise CheckpointError(f"fc.weight has {classes} rows, config.json says num_classes {configured!r}")
    return read_timm_preprocess(pretrained), _labels(config_json, pretrained, classes)


def is_timm(config_json: Mapping[str, object]) -> bool:
    """Return whether timm or transformers' timm_wrapper wrote the config.json."""
    kind = config_json.get("model_type")
    return kind == "timm_wrapper" or ("architecture" in config_json and kind is None)


def served_config(config_json: Mapping[str, object]) -> dict[str, Any]:
    """Return config.json for transformers' timm_wrapper, which builds the network that timm builds from it.

    Raises CheckpointError if it would be fetched or read from other files, or is no classifier of RGB images.
    """
    pretrained = pretrained_of(config_json)
    architecture = config_json.get("architecture")
    if not isinstance(architecture, str) or not _REGISTERED.fullmatch(architecture):
        raise CheckpointError(
            f"config.json says architecture {architecture!r}, wanted a name that timm itself has, such as "
            "vit_base_patch16_224; others (hf-hub:, local-dir:, a path) would be fetched or read from elsewhere"
        )
    arguments = _arguments(config_json)
    classes = _classes(config_json, pretrained, arguments.pop("num_classes", None))
    if pretrained.get("fixed_input_size") and "input_size" in pretrained:  # as timm's _update_default_model_kwargs
        arguments.setdefault("img_size", [timm_size(pretrained["input_size"])] * 2)
    labels = _labels(config_json, pretrained, classes)
    named = {"label_names": list(labels) if labels else placeholders(classes)}
    return {
        "model_type": "timm_wrapper",
        "architecture": architecture,
        "num_classes": classes,
        **({} if labels is None and classes != 1000 else named),  # transformers takes timm's own for ImageNet-21k
        "problem_type": config_json.get("problem_type"),
        "model_args": arguments or None,
        "pretrained_cfg": {key: pretrained[key] for key in _PREPROCESSING if key in pretrained},
    }


def _arguments(config_json: Mapping[str, object]) -> dict[str, Any]:
    """Return the model_args that are not null, checked."""
    arguments = {key: value for key, value in mapping(config_json, "model_args").items() if value is not None}
    refused = [f"{key}={value!r}" for key, value in arguments.items() if key in REFUSED_ARGUMENTS and value]
    if refused:
        raise CheckpointError(
            f"model_args in config.json asks timm for {', '.join(refused)}. Packaging and workers fetch nothing, "
            "read no other files, and serve whole classifiers; wanted: arguments of the network itself"
        )
    if arguments.get("in_chans", 3) != 3:
        raise CheckpointError(f"config.json says in_chans {arguments['in_chans']!r}, wanted 3 (RGB)")
    return {key: value for key, value in arguments.items() if key not in REFUSED_ARGUMENTS}


def _classes(config_json: Mapping[str, object], pretrained: Mapping[str, object], argument: object) -> int:
    configured = (argument, config_json.get("num_classes"), pretrained.get("num_classes"))
    classes = next((value for value in configured if value is not None), 1000)  # as timm.models.PretrainedCfg has it
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise CheckpointError(f"config.json says num_classes {classes!r}, wanted a number of 1 or more")
    if config_json.get("num_classes", classes) != classes:
        raise CheckpointError(
            f"config.json says num_classes {config_json['num_classes']!r}, and {classes} in model_args"
        )
    return classes


def pretrained_of(config_json: Mapping[str, object]) -> Mapping[str, object]:
    """Return the settings that the weights were trained with. In timm's older files all of config.json is those."""
    return mapping(config_json, "pretrained_cfg") if "pretrained_cfg" in config_json else config_json


def _labels(
    config_json: Mapping[str, object], pretrained: Mapping[str, object], classes: int
) -> tuple[str, ...] | None:
    found = config_json.get("label_names") or pretrained.get("label_names") or config_json.get("labels")
    if not found:
        return None
    names = names_in(found, "label_names in config.json")
    if len(names) != classes:
        raise CheckpointError(f"label_names in config.json: {len(names)} of them, wanted {classes}")
    return labels_of(dict(enumerate(names)))


def mapping(config: Mapping[str, object], key: str) -> Mapping[str, object]:
    """Return an object in config.json; empty if it is missing or null."""
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{key} in config.json is a {type(value).__name__}, wanted an object")
    return value
