"""Which config.json of a ResNet, ResNeXt or Wide ResNet asks for nothing but what handlers.engines computes itself.

Sources: transformers/models/resnet/configuration_resnet.py; handlers/engines/networks.py for groups and widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handlers.engines.titles import PLAIN

REDUCTION = 4  # a plain bottleneck's output channels by those inside
BOTTLENECK, BASIC = "bottleneck", "basic"
# Known keys by the type of their values. Any other key may change the network.
SIZES, LISTS = ("num_channels", "embedding_size"), ("hidden_sizes", "depths")
FLAGS = ("downsample_in_bottleneck", "downsample_in_first_stage")
ONE_OF = {
    "model_type": ("resnet",),
    "architectures": (["ResNetForImageClassification"], ["ResNeXtForImageClassification"]),
    "layer_type": (BOTTLENECK, BASIC),
    "hidden_act": ("relu",),
    "dtype": ("float32", None),
}
STAGES, LABELS = ("stage_names", "out_features", "out_indices"), ("id2label", "label2id")
WITHOUT_EFFECT = ("transformers_version",)
KNOWN = {*SIZES, *LISTS, *FLAGS, *ONE_OF, *PLAIN, *STAGES, *LABELS, *WITHOUT_EFFECT}


def is_known(content: object) -> bool:
    """Whether config.json's content asks for nothing but what is computed here. Raises ValueError for odd labels."""
    if not isinstance(content, Mapping) or content.keys() - KNOWN:
        return False
    return (
        all(content.get(name) in values for name, values in ONE_OF.items())
        and all(_is_size(content.get(name)) for name in SIZES)
        and all(isinstance(content.get(name), list) and all(map(_is_size, content[name])) for name in LISTS)
        and all(type(content.get(name)) is bool for name in FLAGS)
        and len(content["depths"]) == len(content["hidden_sizes"]) > 0
        and _has_known_breadth(content)
        and _has_known_stages(content)
        and classes_of(content) > 0
    )


def breadth_of(content: Mapping[str, Any]) -> dict[str, int]:
    """Return `groups` and `width_per_group`; a plain ResNet's if there are no such keys."""
    return {key: content.get(key, plain) for key, plain in PLAIN.items()}


def width_inside(outputs: int, groups: int, width_per_group: int) -> int:
    """Return the channels inside a bottleneck with `outputs` output channels."""
    return outputs // REDUCTION * width_per_group // PLAIN["width_per_group"] * groups


def classes_of(content: Mapping[str, Any]) -> int:
    """Return the number of classes; 0 if the labels are not understood.

    transformers writes no labels for a network of two classes without names.
    """
    labels, indices = content.get("id2label"), content.get("label2id")
    if not all(found is None or isinstance(found, Mapping) for found in (labels, indices)):
        return 0
    known = all(type(label) is str for label in (labels or {}).values())
    known = known and all(type(index) is int for index in (indices or {}).values())
    if not known:
        return 0
    return 2 if labels is None else len({int(index) for index in labels})


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _has_known_breadth(content: Mapping[str, Any]) -> bool:
    """Whether each bottleneck has channels inside; basic blocks have no breadth but the plain one."""
    breadth = breadth_of(content)
    if not all(map(_is_size, breadth.values())):
        return False
    if content["layer_type"] == BASIC:
        return breadth == PLAIN
    return all(width_inside(outputs, **breadth) > 0 for outputs in content["hidden_sizes"])


def _has_known_stages(content: Mapping[str, Any]) -> bool:
    """Whether the keys of backbones, if they are there, have the values that transformers writes for a classifier."""
    count = len(content["depths"])
    names = ["stem", *(f"stage{index}" for index in range(1, count + 1))]
    wanted = {"stage_names": names, "out_features": names[-1:], "out_indices": [count]}
    return all(content.get(name, value) == value for name, value in wanted.items())
