"""A ResNet, ResNeXt or Wide ResNet that is folded, read from its folder without transformers.

transformers' modelling code takes longer to import than PyTorch itself, and longer than the weights take to load and
fold. A further worker would wait for it. So a folder whose config.json and tensors are all known here is read
directly; any other goes through transformers. Both ways give the same folded weights, bit for bit.

Sources: transformers/models/resnet/modeling_resnet.py, and handlers/engines/networks.py for groups and widths.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from handlers import phases
from handlers.engines.base import EngineSpec
from handlers.engines.folding import BatchNorm, FoldedResNet, Unfolded, fold, fold_resnet
from handlers.engines.resnet_configs import BOTTLENECK, breadth_of, classes_of, is_known, width_inside
from handlers.engines.weight_files import WEIGHTS, Header, has_other_files, headers

EPS = 1e-5  # BatchNorm2d's default, which transformers leaves as it is
NORM = ("weight", "bias", "running_mean", "running_var")  # in the order of BatchNorm
CLASSIFIER = "classifier.1"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A convolution and its BatchNorm, by name.

    Args:
        name: in the file, up to the names of the two.
        shape: of the weight, (O, I / groups, k, k).
        stride: in pixels.
        groups: number of groups.
    """

    name: str
    shape: Shape
    stride: int = 1
    groups: int = 1

    def headers(self) -> dict[str, Header]:
        """Return the type and shape of each of its tensors, by name."""
        norm: dict[str, Header] = {f"{self.name}.normalization.{leaf}": ("F32", self.shape[:1]) for leaf in NORM}
        counted = {f"{self.name}.normalization.num_batches_tracked": ("I64", ())}
        return {f"{self.name}.convolution.weight": ("F32", self.shape), **norm, **counted}

    def read(self, tensor: Callable[[str], torch.Tensor]) -> Unfolded:
        """Return its tensors, which `tensor` returns by name."""
        weight, bias, mean, variance = (tensor(f"{self.name}.normalization.{leaf}") for leaf in NORM)
        norm = BatchNorm(weight, bias, mean, variance, EPS)
        convolution = tensor(f"{self.name}.convolution.weight")
        return Unfolded(convolution, norm, self.stride, self.shape[-1] // 2, self.groups)


class Block(NamedTuple):
    """A residual block. body: its convolutions. shortcut: another, or None for the identity."""

    body: tuple[Layer, ...]
    shortcut: Layer | None


@dataclass(frozen=True)
class ResNetFolder:
    """A folder that can be read directly. path: the folder. content: config.json's."""

    path: Path
    content: Mapping[str, Any]

    def stem(self) -> Layer:
        """Return the first layer."""
        shape = (self.content["embedding_size"], self.content["num_channels"], 7, 7)
        return Layer("resnet.embedder.embedder", shape, stride=2)

    def blocks(self) -> Iterator[Block]:
        """Return the residual blocks, in order."""
        content, block = self.content, self._bottleneck if self.content["layer_type"] == BOTTLENECK else self._basic
        widths = pairwise([content["embedding_size"], *content["hidden_sizes"]])
        for stage, ((inputs, outputs), depth) in enumerate(zip(widths, content["depths"], strict=True)):
            first = 2 if stage or content["downsample_in_first_stage"] else 1
            for index in range(depth):
                name = f"resnet.encoder.stages.{stage}.layers.{index}"
                yield block(name, outputs if index else inputs, outputs, 1 if index else first)

    def headers(self) -> dict[str, Header]:
        """Return the type and shape of each tensor in the file, by name."""
        classes = classes_of(self.content)
        found: dict[str, Header] = {
            f"{CLASSIFIER}.weight": ("F32", (classes, self.content["hidden_sizes"][-1])),
            f"{CLASSIFIER}.bias": ("F32", (classes,)),
            **self.stem().headers(),
        }
        for block in self.blocks():
            for layer in (*block.body, block.shortcut):
                found |= {} if layer is None else layer.headers()
        return found

    def _basic(self, name: str, inputs: int, outputs: int, stride: int) -> Block:
        body = (
            Layer(f"{name}.layer.0", (outputs, inputs, 3, 3), stride),
            Layer(f"{name}.layer.1", (outputs, outputs, 3, 3)),
        )
        return Block(body, _shortcut(name, inputs, outputs, stride))

    def _bottleneck(self, name: str, inputs: int, outputs: int, stride: int) -> Block:
        breadth = breadth_of(self.content)
        groups, width = breadth["groups"], width_inside(outputs, **breadth)
        strides = (stride, 1) if self.content["downsample_in_bottleneck"] else (1, stride)
        body = (
            Layer(f"{name}.layer.0", (width, inputs, 1, 1), strides[0]),
            Layer(f"{name}.layer.1", (width, width // groups, 3, 3), strides[1], groups),
            Layer(f"{name}.layer.2", (outputs, width, 1, 1)),
        )
        return Block(body, _shortcut(name, inputs, outputs, stride))


def folded(spec: EngineSpec) -> FoldedResNet:
    """Load a ResNet, folded, onto the spec's device and in its dtype.

    Raises what `networks.load` and `fold_resnet` raise.
    """
    return load(spec) or through_transformers(spec)


def through_transformers(spec: EngineSpec) -> FoldedResNet:
    """Do the same for any folder, through transformers."""
    from handlers.engines import networks

    model = networks.load(spec.model_dir, torch.float32)
    with phases.phase("weights"):
        return fold_resnet(model, spec.device, spec.dtype)


def load(spec: EngineSpec) -> FoldedResNet | None:
    """Load a ResNet, folded; None if it has to go through transformers. Reads and folds one layer after another."""
    with phases.phase("weights"):
        folder = read(spec.model_dir)
        return None if folder is None else _load(folder, spec)


def read(path: Path) -> ResNetFolder | None:
    """Return a folder; None if it has to go through transformers. Reads no weights."""
    try:
        content = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if has_other_files(path) or not is_known(content):
            return None
        found = ResNetFolder(path, content)
        return found if headers(path) == found.headers() else None
    except (OSError, ValueError, SafetensorError):  # whatever is wrong with it, transformers says it
        return None


def _load(folder: ResNetFolder, spec: EngineSpec) -> FoldedResNet:
    with safe_open(folder.path / WEIGHTS, "pt") as file:
        tensor = file.get_tensor
        blocks = (
            ([layer.read(tensor) for layer in body], None if shortcut is None else shortcut.read(tensor))
            for body, shortcut in folder.blocks()
        )
        classifier = tensor(f"{CLASSIFIER}.weight"), tensor(f"{CLASSIFIER}.bias")
        return fold(folder.stem().read(tensor), blocks, classifier, spec.device, spec.dtype)


def _shortcut(name: str, inputs: int, outputs: int, stride: int) -> Layer | None:
    is_identity = inputs == outputs and stride == 1
    return None if is_identity else Layer(f"{name}.shortcut", (outputs, inputs, 1, 1), stride)
