"""The network of an image model's folder: transformers' own, or a ResNet with grouped or wider bottlenecks.

transformers' ResNet has neither groups nor widths. Here its config.json may hold two more keys, with torchvision's
names: `groups` and `width_per_group`. A bottleneck with 4 * planes output channels then has
int(planes * width_per_group / 64) * groups channels inside, and its 3x3 convolution has `groups` groups. ResNeXt-50
32x4d has 32 groups of width 4, Wide ResNet-50-2 has 1 of width 128, a plain ResNet has 1 of width 64.

Sources: arXiv:1611.05431 (ResNeXt), arXiv:1605.07146 (Wide ResNet), torchvision/models/resnet.py (Bottleneck).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from handlers import LOCAL, phases
from handlers.engines.titles import PLAIN

with phases.phase("transformers"):  # it takes seconds
    from transformers import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        MODEL_MAPPING,
        AutoConfig,
        AutoModelForImageClassification,
        CLIPVisionModelWithProjection,
        ResNetForImageClassification,
    )
    from transformers.models.resnet.modeling_resnet import ResNetBottleNeckLayer, ResNetConvLayer
    from transformers.utils.logging import disable_progress_bar

TOWERS = (CLIPVisionModelWithProjection,)  # image encoders that AutoModel does not choose


class ResNeXtForImageClassification(ResNetForImageClassification):
    """ResNetForImageClassification with `groups` and `width_per_group`: ResNeXt and Wide ResNet.

    Args:
        config: a ResNetConfig with both keys.

    Raises:
        ValueError: for basic blocks, or a width of less than one channel.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call, unused-ignore]
        if config.layer_type != "bottleneck":
            raise ValueError(f"{config.layer_type} blocks came with {breadth(config)}; only bottlenecks have those")
        for block in self.modules():
            if isinstance(block, ResNetBottleNeckLayer):
                _broaden(block, **breadth(config))


def _broaden(block: Any, groups: int, width_per_group: int) -> None:
    reduce, inner, expand = (layer.convolution for layer in block.layer)
    planes = expand.out_channels // 4
    width = planes * width_per_group // 64 * groups
    if groups < 1 or width < 1:
        raise ValueError(f"groups {groups} and width_per_group {width_per_group} make a bottleneck {width} wide")
    block.layer[0] = ResNetConvLayer(reduce.in_channels, width, kernel_size=1, stride=reduce.stride[0])
    block.layer[1] = ResNetConvLayer(width, width, stride=inner.stride[0], groups=groups)
    none: Any = None  # annotated as a str
    block.layer[2] = ResNetConvLayer(width, expand.out_channels, kernel_size=1, activation=none)


def breadth(config: Any) -> dict[str, int]:
    """Return `groups` and `width_per_group` of a configuration; a plain ResNet's if it has no such keys."""
    return {key: getattr(config, key, plain) for key, plain in PLAIN.items()}


def broader(keys: Mapping[str, int]) -> dict[str, int]:
    """Return the keys to write into a configuration: none for a plain ResNet. keys: as `breadth` returns them."""
    return {} if dict(keys) == PLAIN else dict(keys)


def is_resnet(config: Any) -> bool:
    """Whether it is a classifier, and a ResNet, ResNeXt or Wide ResNet, whose parts engines and converters know."""
    return bool(config.model_type == "resnet") and encoder_class_of(config) is None


def build(config: Any) -> Any:
    """Build the network with random weights, in fp32. Raises whatever transformers raises if it cannot be built."""
    if encoder := encoder_class_of(config):
        return encoder._from_config(config, dtype=torch.float32)
    if is_resnet(config):
        return _resnet(config)(config)
    return AutoModelForImageClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)


def encoder_class_of(config: Any) -> Any:
    """Return transformers' class of an image encoder, which has no classifier; None if the architecture is another.

    Args:
        config: whose `architectures` holds the name of the class that its weights are of.
    """
    found: Any = MODEL_MAPPING.get(type(config), ())
    every = {kind.__name__: kind for kind in (*(found if isinstance(found, tuple) else (found,)), *TOWERS)}
    named = [name for name in getattr(config, "architectures", None) or () if name in every]
    return every[named[0]] if named else None


def class_of(config: Any) -> Any:
    """Return transformers' class for a configuration. If there are several (DeiT, LeViT): the named or the first."""
    if is_resnet(config):
        return _resnet(config)
    found: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    every: Mapping[str, Any] = {kind.__name__: kind for kind in (found if isinstance(found, tuple) else (found,))}
    named = [name for name in getattr(config, "architectures", None) or () if name in every]
    return every[named[0]] if named else next(iter(every.values()))


def load(folder: Path, dtype: torch.dtype) -> Any:
    """Load the network of a folder with config.json and model.safetensors, in eval mode, on the CPU.

    Raises:
        ValueError: if it is a timm network, and timm cannot be imported.
    """
    _refuse_without_timm(folder)
    disable_progress_bar()  # it is drawn for a terminal, and this is a log
    config = AutoConfig.from_pretrained(folder, **LOCAL)
    network_class = encoder_class_of(config) or class_of(config)
    with phases.phase("weights"):
        return network_class.from_pretrained(folder, config=config, dtype=dtype, **LOCAL).eval()


def _refuse_without_timm(folder: Path) -> None:
    config: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") == "timm_wrapper" and (problem := timm_problem()):
        raise ValueError(f"the network is timm's ({config.get('architecture')}), and {problem}")


def timm_problem() -> str | None:
    """Return why timm networks cannot run here, with what to do; or None."""
    try:
        import timm  # noqa: F401  # imports torchvision, whose release has to fit torch's
    except Exception as error:  # ImportError, or RuntimeError from a torchvision that is built for another torch
        return (
            f"timm cannot be imported here ({type(error).__name__}: {error}). Wanted: the packages timm and "
            f"torchvision, in the release and build that fit torch {torch.__version__}"
        )
    return None


def _resnet(config: Any) -> Any:
    return ResNetForImageClassification if breadth(config) == PLAIN else ResNeXtForImageClassification
