"""Image checkpoints whose preprocessing transformers' own processor does when the archive is served."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from archive.checkpoints.errors import CheckpointError
from handlers.engines import networks
from handlers.engines.image_inputs import ImageInputs, outputs
from handlers.images.preprocess import Preprocess
from handlers.images.processors import PIXELS, Processor
from handlers.protocol.errors import RequestError


def by_transformers(folder: Path, problem: CheckpointError) -> Preprocess:
    """The preprocessing of a folder by transformers' processor, tried on a plain image.

    Args:
        folder: of the checkpoint.
        problem: why this package's own steps cannot express it.

    Raises `problem` if transformers cannot make the processor, or if it makes numbers that are not finite.
    """
    try:
        processor = Processor(folder)
        made = processor(Image.linear_gradient("L").convert("RGB"))
        varies = processor.varies()
    except (ValueError, RequestError):
        raise problem from None
    if not all(value.isfinite().all() for value in made.values()):
        raise problem
    is_image = set(made) == {PIXELS} and made[PIXELS].dim() == 3 and len(made[PIXELS]) == 3
    height, width = map(int, made[PIXELS].shape[1:]) if is_image and not varies else (0, 0)
    return Preprocess(height, height, width=width, processor=processor.name)


def fitted(network: Any, folder: Path, preprocess: Preprocess) -> Preprocess:
    """The preprocessing with the image size that the network takes, if the processor leaves that to the image.

    Args:
        network: the checkpoint's, in eval mode, fp32 on the CPU.
        folder: of the checkpoint.
        preprocess: with a processor.

    Raises CheckpointError if the network does not take what the processor makes.
    """
    processor = Processor(folder)
    if preprocess.size or not processor.varies():
        refuse_inputs(network, example(folder, preprocess), f"what {processor.name} makes")
        return preprocess
    if _problem(network, torch.zeros(1, 3, 160, 96)) is None:
        return preprocess
    height, width = _image_size(network.config, processor.name)
    refuse_inputs(network, torch.zeros(1, 3, height, width), f"an image of {width} x {height} pixels")
    return dataclasses.replace(preprocess, size=height, resize=height, width=width)


def example(folder: Path, preprocess: Preprocess) -> ImageInputs:
    """The network's input that the folder's processor makes of a plain image."""
    height, width = preprocess.shape if preprocess.size else (256, 256)
    made = Processor(folder)(Image.new("RGB", (width, height), (120, 120, 120)))
    batch = {name: value.unsqueeze(0) for name, value in made.items()}
    return batch[PIXELS] if set(batch) == {PIXELS} else batch


def write(source: Path, folder: Path) -> None:
    """Write the processor's file into an archive's folder.

    Args:
        source: folder of the checkpoint.
        folder: of the archive.
    """
    Processor(source).own.save_pretrained(folder)


def samples(folder: Path, preprocess: Preprocess, images: list[bytes]) -> list[bytes]:
    """Images for the parity gate, in the network's size if nothing else would resize them.

    Args:
        folder: of the checkpoint.
        preprocess: the archive's.
        images: files that Pillow reads.
    """
    if not preprocess.processor or not preprocess.size or Processor(folder).resizes:
        return images
    height, width = preprocess.shape
    return [_resized(data, (width, height)) for data in images]


def _resized(data: bytes, size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize(size).save(stream, "PNG")
    return stream.getvalue()


def _image_size(config: Any, processor: str) -> tuple[int, int]:
    size = getattr(config, "image_size", None)
    sides = [size, size] if isinstance(size, int) else list(size or ())
    if len(sides) != 2:
        raise CheckpointError(
            f"{processor} does not resize images, the network takes one size only, and config.json names none"
        )
    return int(sides[0]), int(sides[1])


def refuse_inputs(network: Any, inputs: ImageInputs, what: str) -> None:
    """Raises CheckpointError if the network does not take one image's input. what: it is, for the message."""
    if problem := _problem(network, inputs):
        raise CheckpointError(f"{type(network).__name__} does not take {what}: {problem}")


@torch.inference_mode()
def _problem(network: Any, inputs: ImageInputs) -> str | None:
    """Why the network gives no row of logits, or no vector of features, for one image; None if it does."""
    try:
        shape = tuple(outputs(network, inputs).shape)
    except Exception as error:  # each network has its own words for it
        return str(error)
    if networks.encoder_class_of(network.config):
        return None if len(shape) == 2 and shape[0] == 1 else f"it gives {shape} for one image, wanted one vector"
    wanted = (1, network.config.num_labels)
    return None if shape == wanted else f"it gives {shape} for one image, wanted logits {wanted}"
