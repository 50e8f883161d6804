"""Renames weights of ResNet, ResNeXt and Wide ResNet from torchvision's or timm's names to transformers' names.

The served names and shapes are those of transformers/models/resnet/modeling_resnet.py. The other names are those of
torchvision/models/resnet.py, which timm/models/resnet.py keeps.
"""

from __future__ import annotations

import re

import torch
from transformers import ResNetConfig

from archive.checkpoints import weight_checks
from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.timm_folders import WRAPPED
from archive.checkpoints.weight_checks import COUNTER, Tensors
from handlers import misfits
from handlers.engines import networks
from handlers.misfits import Shapes, listed

STEM = "resnet.embedder.embedder.convolution.weight"
HEAD = "classifier.1.weight"
CONVOLUTION = "resnet.encoder.stages.{}.layers.{}.layer.{}.convolution.weight"
_BLOCKS = {
    "huggingface": re.compile(r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\."),
    "torchvision": re.compile(r"layer(\d+)\.(\d+)\."),
}
_PART = re.compile(
    r"resnet\.encoder\.stages\.(?P<stage>\d+)\.layers\.(?P<block>\d+)\."
    r"(?:shortcut|layer\.(?P<index>\d+))\.(?P<kind>convolution|normalization)\.(?P<leaf>\w+)"
)
_OUTSIDE_BLOCKS = (
    ("resnet.embedder.embedder.convolution.", "conv1."),
    ("resnet.embedder.embedder.normalization.", "bn1."),
    ("classifier.1.", "fc."),
)
_CANNOT = f"transformers' ResNet cannot express it; {WRAPPED} (timm.models.save_for_hf writes one)"
_OTHERS = (
    "Another architecture has to say what it is: load the weights into transformers' or timm's network of that "
    "architecture, save its folder (network.save_pretrained, timm.models.save_for_hf), and give the folder"
)
# Networks that the names alone tell: pattern of a name, and what it is.
_FOREIGN_NAMES = (
    (r"_packed_params|\.scale$|\.zero_point$", "a quantised model: save the float model's state_dict()"),
    (
        r"^conv1\.\d+\.",
        f"a deep stem of several convolutions (ResNet-C, -D, -S, -T): {_CANNOT}",
    ),
    (
        r"^stages\.\d+\.blocks\.\d+\.conv1\.|^root\.conv",
        f"a pre-activation ResNet (ResNet v2, BiT): {_CANNOT}",
    ),
    (r"\.(se|attn|eca|cbam)\.", f"attention in its blocks (SE-ResNet, ECA-ResNet, ...): {_CANNOT}"),
    (r"\.aa\.|\.filt$", f"anti-aliased downsampling (blur pooling): {_CANNOT}"),
    (r"^maxpool\.", f"a convolution in place of the stem's max pooling: {_CANNOT}"),
    (
        r"^embedder\.embedder\.",
        "a feature extractor (ResNetModel) without classifier: save the classifier too",
    ),
    (
        r"^fc\.\d+\.",
        "a classifier of several modules, wanted a single Linear named fc. If the others only act in "
        "training (Dropout), rename the Linear's weight and bias to fc.weight and fc.bias",
    ),
)


def own_name(name: str, layout: str) -> str:
    """Return the name that `layout` ("huggingface" or "torchvision") has for a tensor of a served network."""
    if layout == "huggingface":
        return name
    for served, own in _OUTSIDE_BLOCKS:
        if name.startswith(served):
            return own + name.removeprefix(served)
    part = _PART.fullmatch(name)
    if part is None:
        raise KeyError(name)
    convolution = part["kind"] == "convolution"
    if part["index"] is None:
        module = f"downsample.{0 if convolution else 1}"
    else:
        module = f"{'conv' if convolution else 'bn'}{int(part['index']) + 1}"
    return f"layer{int(part['stage']) + 1}.{part['block']}.{module}.{part['leaf']}"


def layout_of(tensors: Tensors) -> str:
    """Return the layout that the names belong to: "huggingface" or "torchvision", which is timm's too.

    Raises CheckpointError for other networks, and for ResNet variants that cannot be served, with the reason.
    """
    if any(name.startswith(("resnet.embedder.", "resnet.encoder.")) for name in tensors):
        return "huggingface"
    for pattern, reason in _FOREIGN_NAMES:
        found = [name for name in tensors if re.search(pattern, name)]
        if found:
            raise CheckpointError(f"this is {reason} ({listed(found, 5)})")
    if any(_BLOCKS["torchvision"].match(name) for name in tensors):
        return "torchvision"
    raise CheckpointError(
        "these are not the weights of a ResNet classifier as torchvision, timm or Hugging Face name them "
        f"(conv1.weight, layer1.0.conv1.weight, fc.weight, ...): {listed(tensors) or 'no tensors at all'}. {_OTHERS}"
    )


def refuse_variants(tensors: Tensors, layout: str) -> None:
    """Raise CheckpointError, with the reason, for ResNet variants that only their shapes tell."""
    if not any(name.endswith(".running_mean") for name in tensors):
        raise CheckpointError(f"no running_mean anywhere: GroupNorm or LayerNorm instead of BatchNorm? {_CANNOT}")
    if own_name(HEAD, layout) not in tensors:
        raise CheckpointError(
            f"{own_name(HEAD, layout)} is missing: a feature extractor without classifier. "
            "Wanted: the weights of the whole classifier"
        )
    stem = tensors.get(own_name(STEM, layout))
    if stem is not None and stem.ndim == 4 and stem.shape[1] != 3:
        raise CheckpointError(
            f"{own_name(STEM, layout)} {tuple(stem.shape)} takes {stem.shape[1]} channels, wanted 3 (RGB)"
        )
    for name, tensor in tensors.items():
        if name.endswith("downsample.1.weight") and tensor.ndim == 4:
            raise CheckpointError(
                f"{name} {tuple(tensor.shape)} is a convolution behind average pooling (ResNet-D): {_CANNOT}"
            )


def infer_config(tensors: Tensors, layout: str) -> ResNetConfig:
    """Return the architecture that the shapes tell, complete with num_labels.

    Strides are not in the weights. They are taken as torchvision's: stages 2 and later halve the resolution in their
    first block, bottlenecks in the 3x3 convolution (v1.5). Raises CheckpointError, with its name, if a tensor that is
    needed to tell the architecture is missing.
    """
    stages = _blocks(tensors, layout)
    bottleneck = any(_is_third_convolution(name, layout) for name in tensors)
    last = 2 if bottleneck else 1
    widths = [
        _rows(tensors, [own_name(CONVOLUTION.format(stage, block, last), layout) for block in blocks])
        for stage, blocks in enumerate(stages)
    ]
    return ResNetConfig.from_dict(
        {
            "num_channels": 3,
            "embedding_size": _rows(tensors, [own_name(STEM, layout)]),
            "hidden_sizes": widths,
            "depths": [len(blocks) for blocks in stages],
            "layer_type": "bottleneck" if bottleneck else "basic",
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
            "num_labels": _rows(tensors, [own_name(HEAD, layout)]),
            "architectures": ["ResNetForImageClassification"],
            **(_breadth(tensors, layout) if bottleneck else {}),
        }
    )


def _breadth(tensors: Tensors, layout: str) -> dict[str, int]:
    """Return `groups` and `width_per_group` by the first bottleneck's shapes; nothing if it is plain."""
    names = [own_name(CONVOLUTION.format(0, 0, index), layout) for index in (1, 2)]
    if any(name not in tensors or tensors[name].ndim != 4 for name in names):
        return {}  # the comparison of names and shapes reports it
    inner, expand = (tuple(tensors[name].shape) for name in names)  # (W, W / groups, 3, 3), (4 * planes, W, 1, 1)
    groups, planes = inner[0] // max(inner[1], 1), expand[0] // 4
    width_per_group = inner[0] * 64 // max(planes * groups, 1)
    return networks.broader({"groups": groups, "width_per_group": width_per_group})


def _blocks(tensors: Tensors, layout: str) -> list[list[int]]:
    """Return the numbers of each stage's blocks. A gap among them shows as missing names later on."""
    blocks: dict[int, set[int]] = {}
    for name in tensors:
        if found := _BLOCKS[layout].match(name):
            blocks.setdefault(int(found[1]), set()).add(int(found[2]))
    if not blocks:
        raise CheckpointError(f"no residual blocks among {listed(tensors)}")
    return [sorted(blocks[stage]) for stage in sorted(blocks)]


def _is_third_convolution(name: str, layout: str) -> bool:
    ending = "layer.2.convolution.weight" if layout == "huggingface" else "conv3.weight"
    return name.endswith("." + ending)


def _rows(tensors: Tensors, names: list[str]) -> int:
    for name in names:
        if name in tensors and tensors[name].ndim > 0:
            return int(tensors[name].shape[0])
    raise CheckpointError(f"missing: {names[0]}")


def served_state(tensors: Tensors, layout: str, config: ResNetConfig) -> dict[str, torch.Tensor]:
    """Return a copy of the tensors under the names of networks.build(config).

    Every tensor is float32 and contiguous, in memory of its own. The counters num_batches_tracked are left out:
    inference does not need them, and load_state_dict(strict=True) accepts a plain dictionary without them.

    Args:
        tensors: by the checkpoint's own names.
        layout: whose names those are: "huggingface" or "torchvision".
        config: of the served network.

    Raises:
        CheckpointError: by the checkpoint's own names, for tensors that are missing, unexpected, misshapen, not
            floating-point or not finite.
    """
    own_tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}
    shapes = _shapes(config)
    served = {own_name(name, layout): name for name in shapes}
    weight_checks.refuse_non_floats(own_tensors)
    found = {name: tuple(tensor.shape) for name, tensor in own_tensors.items()}
    weight_checks.refuse(
        misfits.misfits(found, {own: shapes[name] for own, name in served.items()}),
        "the weights are not those of the ResNet that they, or their configuration, describe",
        "Wanted: all weights of one classifier, under the names of one library",
    )
    state = {name: _float32(own_tensors[own]) for own, name in served.items()}
    _refuse_values({own: state[name] for own, name in served.items()})
    return state


def unused(tensors: Tensors, config: ResNetConfig) -> list[str]:
    """Return the names in a Hugging Face file that its network does not use, such as another task's head.

    Layers beyond the network's are not among them. Nothing is returned if a weight is missing: an unexpected weight
    may be the missing one under a wrong name.
    """
    wanted = _shapes(config)
    if not wanted.keys() <= tensors.keys():
        return []
    names = [name for name in tensors if name not in wanted and not name.endswith(COUNTER)]
    surplus = set(weight_checks.surplus_layers(names, wanted))
    return [name for name in names if name not in surplus]


def _shapes(config: ResNetConfig) -> Shapes:
    try:
        with torch.device("meta"):
            state = networks.build(config).state_dict()
    except Exception as error:  # KeyError for an unknown activation, RuntimeError for a negative width, ...
        raise CheckpointError(f"no ResNet can be built from the configuration ({error!r})") from error
    return {name: tuple(t.shape) for name, t in state.items() if not name.endswith(COUNTER)}


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _refuse_values(tensors: Tensors) -> None:
    """Raise CheckpointError, by the checkpoint's own names, for values that no trained network has."""
    negative = [name for name, t in tensors.items() if name.endswith("running_var") and (t < 0).any()]
    weight_checks.refuse(
        {"not finite (in float32)": weight_checks.not_finite(tensors), "negative": negative},
        "the weights hold values that no trained network has",
        "The training diverged, or the file is damaged",
    )
