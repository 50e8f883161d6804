"""From files to the network's outputs: by this package's own steps, or by transformers' image processor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from handlers.engines.image_inputs import ImageInputs, placed
from handlers.images.batching import Batcher
from handlers.images.cropping import blank
from handlers.images.formats import decode
from handlers.images.npy_files import is_npy, read_arrays
from handlers.images.preparation import prepare
from handlers.images.preprocess import Preprocess
from handlers.images.processors import PIXELS, Processed, Processor, shapes_of
from handlers.protocol.errors import InvalidImage, PayloadTooLarge
from handlers.transfers import upload

logger = logging.getLogger(__name__)

# Pixels of one image that no step resizes: a network's activations take hundreds of bytes for each.
MAX_UNRESIZED = 4_000_000
MAX_SMALLEST = 256  # pixels; the side of the smallest image that a network without a size of its own has to take
Network = Callable[[Any], torch.Tensor]  # an engine's `run`


class Pipeline(Protocol):
    """The way from one input's file to the network's input."""

    description: str

    def prepare(self, data: bytes) -> list[Any]:
        """The network's inputs for one file, on the CPU; several for a .npy file of several. Raises RequestError."""

    def blank(self) -> Any:
        """The network's input for an image without content."""

    def probe(self, network: Network) -> None:
        """Find out by the network itself what it takes, as far as the settings do not say it."""

    def batches(self, inputs: Sequence[Any], at_once: int) -> list[list[int]]:
        """Indices of inputs that can run together, at most `at_once`; each index once."""

    def batch(self, inputs: Sequence[Any]) -> ImageInputs:
        """The network's input for inputs that can run together, on its device."""


def run(pipeline: Pipeline, network: Network, inputs: Sequence[Any], at_once: int) -> torch.Tensor:
    """The network's outputs for all inputs.

    Args:
        pipeline: of the archive.
        network: the engine's `run`.
        inputs: N of what the pipeline prepares, one or more.
        at_once: inputs of one run, at most.

    Returns:
        (N, K), in order, on the device.
    """
    batches = pipeline.batches(inputs, at_once)
    parts = [network(pipeline.batch([inputs[index] for index in indices])) for indices in batches]
    outputs = torch.cat(parts) if len(parts) > 1 else parts[0]
    order = [index for indices in batches for index in indices]
    return outputs if order == sorted(order) else outputs[upload(torch.tensor(order).argsort(), outputs.device)]


def load(folder: Path, preprocess: Preprocess, max_pixels: int, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """The pipeline of an archive.

    Args:
        folder: of the archive.
        preprocess: its settings.
        max_pixels: of one image, width x height.
        device, dtype: of the network's input.

    Raises ValueError if the archive's image processor cannot be made.
    """
    if not preprocess.processor:
        return OwnSteps(preprocess, max_pixels, device, dtype)
    logger.info("images are preprocessed by transformers' %s on the CPU", preprocess.processor)
    processor = Processor(folder)
    if processor.name != preprocess.processor:
        raise ValueError(
            f"the archive's preprocessor_config.json describes {processor.name}, and model-config.yaml names "
            f"{preprocess.processor}"
        )
    return TransformersSteps(processor, preprocess, max_pixels, device, dtype)


class OwnSteps:
    """Resize and crop on the CPU (or on the GPU, see gpu_decoder), normalise on the device.

    In fp32 the crops are the libraries', value by value: the parity gate's limit for fp32 (1e-4) asks for that. In
    fp16 and bf16 (1e-2 and 5e-2) only what the crop shows is resized, which is faster and changed logits by
    2e-3 at most (docs/batching.md).
    """

    def __init__(self, preprocess: Preprocess, max_pixels: int, device: torch.device, dtype: torch.dtype) -> None:
        self.preprocess, self.max_pixels = preprocess, max_pixels
        self.batcher = Batcher(preprocess, device, dtype)
        height, width = preprocess.shape
        self.exact = dtype == torch.float32
        whole = "" if self.exact else "; only the part that is seen is resized, within 2 levels of 255"
        self.description = f"resize and crop to {height} x {width} pixels by this package{whole}"

    def prepare(self, data: bytes) -> list[Any]:
        """See Pipeline: one crop for an image; one or more images for a .npy file."""
        return list(prepare(data, self.preprocess, self.max_pixels, exact=self.exact))

    def blank(self) -> Any:
        """See Pipeline: a black crop."""
        return blank(self.preprocess)

    def probe(self, network: Network) -> None:
        """See Pipeline: the settings say it all."""

    def batches(self, inputs: Sequence[Any], at_once: int) -> list[list[int]]:
        """See Pipeline: all can run together."""
        indices = list(range(len(inputs)))
        return [indices[start : start + at_once] for start in range(0, len(inputs), at_once)]

    def batch(self, inputs: Sequence[Any]) -> ImageInputs:
        """See Pipeline: (N, 3, height, width)."""
        return self.batcher(inputs)


class TransformersSteps:
    """transformers' image processor on the CPU, one image after the other, and batches of equal shapes.

    Images whose shapes depend on what came run one by one.
    """

    def __init__(
        self,
        processor: Processor,
        preprocess: Preprocess,
        max_pixels: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.processor, self.device, self.dtype = processor, device, dtype
        self.shape = (3, *preprocess.shape) if preprocess.size else None  # of every image, if it is always the same
        self.varies = not preprocess.size and processor.varies()
        self.smallest = 1  # side of an image, in pixels
        self.max_pixels = max_pixels if processor.resizes else min(max_pixels, MAX_UNRESIZED)
        self.description = f"transformers' {processor.name} on the CPU"

    def prepare(self, data: bytes) -> list[Any]:
        """See Pipeline: uint8 images of a .npy file are whole ones, whatever their size."""
        if not is_npy(data):
            return [self._checked(self.processor(decode(data, self.max_pixels)))]
        arrays = read_arrays(data, self.shape[1:] if self.shape else None, self.max_pixels)  # (N, ...)
        if arrays.dtype == np.uint8:
            return [self._checked(self.processor(Image.fromarray(array))) for array in arrays]
        return [{PIXELS: torch.from_numpy(array.astype(np.float32))} for array in arrays]

    def blank(self) -> Any:
        """See Pipeline: what the processor makes of a grey image."""
        height, width = self.shape[1:] if self.shape else (224, 224)
        return self._checked(self.processor(Image.new("RGB", (width, height), (120, 120, 120))))

    def probe(self, network: Network) -> None:
        """See Pipeline: the smallest side of an image, if images go to the network in their own size.

        Raises ValueError if the network does not take MAX_SMALLEST pixels.
        """
        if not self.varies:
            return
        fails, self.smallest = 0, MAX_SMALLEST
        if not self._takes(network, MAX_SMALLEST):
            raise ValueError(f"the network takes no images of {MAX_SMALLEST} x {MAX_SMALLEST} pixels")
        while self.smallest - fails > 1:
            side = (fails + self.smallest) // 2
            fails, self.smallest = (fails, side) if self._takes(network, side) else (side, self.smallest)

    def _takes(self, network: Network, side: int) -> bool:
        try:
            network(self.batch([{PIXELS: torch.zeros(3, side, side)}]))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # each network has its own words for an image that is too small
            return False
        return True

    def batches(self, inputs: Sequence[Any], at_once: int) -> list[list[int]]:
        """See Pipeline: inputs of equal shapes, or one by one if the shapes depend on the images."""
        groups: dict[str, list[int]] = {}
        for index, item in enumerate(inputs):
            groups.setdefault(str(sorted(shapes_of(item).items())), []).append(index)
        size = 1 if self.varies else at_once
        return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]

    def batch(self, inputs: Sequence[Any]) -> ImageInputs:
        """See Pipeline: pixels alone are a tensor, anything else tensors by name."""
        stacked = {name: torch.stack([item[name] for item in inputs]) for name in inputs[0]}  # (N, ...) each
        return placed(stacked[PIXELS] if set(stacked) == {PIXELS} else stacked, self.device, self.dtype)

    def _checked(self, item: Processed) -> Processed:
        """The item. Raises InvalidImage or PayloadTooLarge if the network takes no image of its shape."""
        if self.shape is None and not self.varies:
            return item
        shape = tuple(item[PIXELS].shape)
        if self.shape is not None and shape != self.shape:
            wanted = f"{self.shape[2]} x {self.shape[1]}"
            raise InvalidImage(f"the network takes images of {wanted} pixels, and this one becomes {_size(shape)}")
        if self.varies and min(shape[-2:]) < self.smallest:
            raise InvalidImage(
                f"the image is too small: it becomes {_size(shape)} pixels, and the network takes sides of at least "
                f"{self.smallest}"
            )
        if self.varies and shape[-1] * shape[-2] > MAX_UNRESIZED:
            raise PayloadTooLarge(f"the network would get {_size(shape)} pixels; at most {MAX_UNRESIZED} are taken")
        return item


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-1]} x {shape[-2]}"
