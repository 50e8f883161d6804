"""An image classifier -> ONNX in half precision, as TensorRT's parser reads it.

Of a ResNet with ReLU, BatchNorm is folded in fp64 and cast once (handlers.engines.folding), so that the ONNX network
is the very function that the cuDNN engine runs; any other goes as transformers runs it. Its own types carry the
precision to strongly typed TensorRT networks. Images come in as they lie in memory in channels_last, so that no batch
is copied before a plan reads it.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handlers.engines import networks
from handlers.engines.folding import FoldedResNet, Operations, TorchOperations, contiguous, fold_resnet, run
from handlers.engines.image_inputs import outputs
from handlers.engines.tensorrt import INPUT, OUTPUT

OPSET = 17  # the newest that TensorRT 8.6 reads


class FoldedModule(nn.Module):
    """A folded ResNet as the module that exporters and converters ask for, in the operations that they can read."""

    def __init__(self, network: FoldedResNet, operations: Operations) -> None:
        super().__init__()
        self.network, self.operations = network, operations

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) -> logits (N, classes)"""
        return run(self.network, images, self.operations)


class LogitsModule(nn.Module):
    """Any classifier or image encoder of transformers as such a module: a tensor in, a tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) -> logits (N, classes)"""
        return outputs(self.model, images)


class ChannelsLastModule(nn.Module):
    """Such a module for images as they lie in memory in channels_last."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, S, S, 3) -> logits (N, classes)"""
        logits: torch.Tensor = self.network(images.permute(0, 3, 1, 2))
        return logits


def module(model: Any, device: torch.device, dtype: torch.dtype, operations: Operations) -> nn.Module:
    """What exporters and converters get of a classifier of handlers.engines.networks, which is left as it is."""
    if networks.is_resnet(model.config) and model.config.hidden_act == "relu":
        return FoldedModule(contiguous(fold_resnet(model.eval(), device, dtype)), operations)
    return LogitsModule(copy.deepcopy(model).eval().to(device, dtype))


@torch.inference_mode()
def export(model: Any, path: Path, image_size: int, dtype: torch.dtype = torch.float16) -> None:
    """Write a classifier of handlers.engines.networks to `path`, the batch size left open.

    Input `images`: (N, image_size, image_size, 3) of `dtype`; output `logits`: (N, classes).
    Raises ValueError, with the network's name, where PyTorch cannot express it in ONNX.
    """
    network = ChannelsLastModule(module(model, torch.device("cpu"), dtype, TorchOperations()))
    example = torch.zeros((2, image_size, image_size, 3), dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own age
        try:
            torch.onnx.export(
                network,
                (example,),
                str(path),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
                dynamo=False,  # needs onnx alone, and writes what TensorRT 8.6 reads
            )
        except (RuntimeError, TypeError) as error:  # an operator without ONNX form; a tensor where a number belongs
            raise ValueError(
                f"{type(model).__name__} cannot be exported to ONNX opset {OPSET} ({str(error).splitlines()[0]}); "
                "--engine torch_eager packages it without"
            ) from error
