"""Exports an image classifier to ONNX in half precision, as TensorRT's parser reads it.

The BatchNorm layers of a ResNet with ReLU are folded in fp64 and cast once (handlers.engines.folding), so that the
ONNX network is exactly the function that the cuDNN engine runs. Others are exported as transformers runs them.
The ONNX types carry the precision to TensorRT's strongly typed networks. The input is (N, S, S, 3), which is how a
channels_last batch lies in memory, so that no batch is copied before a plan reads it.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handlers.engines import networks
from handlers.engines.folding import FoldedResNet, ResNetOps, TorchResNetOps, contiguous, fold_resnet, run
from handlers.engines.image_inputs import outputs
from handlers.engines.tensorrt import INPUT, OUTPUT

OPSET = 17  # the newest that TensorRT 8.6 reads


class FoldedModule(nn.Module):
    """A folded ResNet as a module for exporters and converters, in operations that they can read."""

    def __init__(self, network: FoldedResNet, operations: ResNetOps) -> None:
        super().__init__()
        self.network, self.operations = network, operations

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) -> logits (N, classes)"""
        return run(self.network, images, self.operations)


class LogitsModule(nn.Module):
    """A classifier or image encoder of transformers as a module that takes a tensor and returns a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) -> logits (N, classes)"""
        return outputs(self.model, images)


class ChannelsLastModule(nn.Module):
    """Takes images as a channels_last batch lies in memory, and hands them to a network as (N, 3, S, S)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, S, S, 3) -> logits (N, classes)"""
        logits: torch.Tensor = self.network(images.permute(0, 3, 1, 2))
        return logits


def module(model: Any, device: torch.device, dtype: torch.dtype, operations: ResNetOps) -> nn.Module:
    """Return a copy of a classifier of handlers.engines.networks as exporters and converters take it.

    operations: how a folded ResNet computes its fused steps.
    """
    if networks.is_resnet(model.config) and model.config.hidden_act == "relu":
        return FoldedModule(contiguous(fold_resnet(model.eval(), device, dtype)), operations)
    return LogitsModule(copy.deepcopy(model).eval().to(device, dtype))


@torch.inference_mode()
def export(model: Any, path: Path, image_size: int, dtype: torch.dtype = torch.float16) -> None:
    """Write a classifier of handlers.engines.networks to `path`, for any batch size.

    The ONNX input `images` is (N, image_size, image_size, 3) of `dtype`, the output `logits` is (N, classes).
    Raises ValueError, with the network's name, if PyTorch cannot express it in ONNX.
    """
    network = ChannelsLastModule(module(model, torch.device("cpu"), dtype, TorchResNetOps()))
    example = torch.zeros((2, image_size, image_size, 3), dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns that it is the older one
        try:
            torch.onnx.export(
                network,
                (example,),
                str(path),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
                dynamo=False,  # the older exporter needs only onnx, and writes what TensorRT 8.6 reads
            )
        except (RuntimeError, TypeError) as error:  # an operator without ONNX form; a tensor in place of a number
            raise ValueError(
                f"{type(model).__name__} cannot be exported to ONNX opset {OPSET} ({str(error).splitlines()[0]}); "
                "--engine torch_eager packages it without"
            ) from error
