"""A folded ResNet -> ONNX in half precision, as TensorRT's parser reads it.

BatchNorm is folded in fp64 and cast once (handlers.engines.folding), so that the ONNX network is the very function
that the cuDNN engine runs, and its own types carry the precision to strongly typed TensorRT networks.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handlers.engines.folding import FoldedResNet, Operations, TorchOperations, fold_resnet, run
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


@torch.inference_mode()
def export(model: Any, path: Path, image_size: int, dtype: torch.dtype = torch.float16) -> None:
    """Write a transformers ResNetForImageClassification to `path`, the batch size left open.

    Input `images`: (N, 3, image_size, image_size) of `dtype`; output `logits`: (N, classes).
    Raises ValueError where the network cannot be folded, and RuntimeError where it cannot be exported.
    """
    network = FoldedModule(fold_resnet(model.eval(), torch.device("cpu"), dtype), TorchOperations())
    example = torch.zeros((2, 3, image_size, image_size), dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own age
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
