"""The few samples of the parity gate that an archive carries, with their fp32 outputs (parity.safetensors).

A worker compares its engine with them before it serves (handlers/selection/references.py). The outputs are the
checkpoint's own, run by transformers in fp32 on the CPU. Do not confuse them with archive/reference_pixels.py, which
prepares images for the parity gate as the checkpoint's own library does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import torch

from archive import reference_embeddings
from archive.models import ImageModel, PackagedModel, TextModel
from handlers import tasks
from handlers.engines.image_inputs import outputs, placed
from handlers.images.processors import shapes_of
from handlers.selection.references import COUNT, LONGEST, Images, Texts

CHARACTERS_PER_TOKEN = 8  # more than texts have on average: a text of that length is long enough to be cut

T = TypeVar("T")


@torch.inference_mode()
def write(model: PackagedModel, folder: Path) -> None:
    """Write `parity.safetensors` into the folder."""
    if isinstance(model, ImageModel):
        _images(model).save(folder)
    elif isinstance(model, TextModel):
        _texts(model).save(folder)


def spread(samples: Sequence[T], count: int) -> list[T]:
    """Return `count` of the samples, spread evenly from the first to the last; all of them if they are fewer."""
    if len(samples) <= count:
        return list(samples)
    return [samples[index * (len(samples) - 1) // (count - 1)] for index in range(count)]


def _images(model: ImageModel) -> Images:
    pipeline, cpu = model.pipeline(), torch.device("cpu")
    inputs = [item for sample in spread(model.samples(), COUNT) for item in pipeline.prepare(sample)][:COUNT]
    batches = pipeline.batches(inputs, COUNT)
    alike = [index for batch in batches for index in batch if _have_same_shapes(inputs[batch[0]], inputs[0])]
    images = pipeline.batch([inputs[index] for index in alike])
    half = placed(images, cpu, torch.float16)  # the outputs are those of exactly these values
    return Images(half, outputs(model.checkpoint.network(), placed(half, cpu, torch.float32)))


def _have_same_shapes(first: Any, second: Any) -> bool:
    """Return whether one batch can hold both inputs of the network."""
    if isinstance(first, Mapping):
        return shapes_of(dict(first)) == shapes_of(dict(second))
    return True  # crops and normalised images, which the batcher makes equal in shape


def _texts(model: TextModel) -> Texts:
    lines = [sample.decode() for sample in model.samples()]
    texts = [*spread(lines, COUNT), _long(lines, model)]
    texts = [reference_embeddings.with_prompt(text, model.settings) for text in texts]
    rows = [_run(model, text) for text in texts]
    rows = [row for row in rows if len(row["outputs"])]  # fill-mask: those whose mask was not cut off
    masked = tasks.head(model.settings.task).rows == "mask"
    return Texts(
        model.settings.task,
        [row["ids"] for row in rows],
        [row["types"] for row in rows],
        [row["selected"] for row in rows] if masked else [],
        [row["outputs"] for row in rows],
    )


def _long(lines: Sequence[str], model: TextModel) -> str:
    """Return one text of all lines that is longer than the model takes. Only its first line has a masked word."""
    mask, size = model.checkpoint.tokenizer.mask_token, 0
    parts: list[str] = []
    for line in cycle(lines):
        parts.append(line.replace(mask, "") if mask and parts else line)
        size += len(line) + 1
        if size > CHARACTERS_PER_TOKEN * min(model.settings.max_tokens, LONGEST):
            return " ".join(parts)
    raise ValueError("there are no samples")


def _run(model: TextModel, text: str) -> dict[str, Any]:
    """Run one text alone, cut to the model's maximum: returns its tokens and what the task reads from the network."""
    tokenizer, most = model.checkpoint.tokenizer, min(model.settings.max_tokens, LONGEST)
    tokens = tokenizer(text, truncation=True, max_length=most, return_tensors="pt")
    ids = tokens["input_ids"][0]
    head, is_masked = tasks.head(model.settings.task), ids == tokenizer.mask_token_id
    found = model.network_outputs(model.checkpoint.model(**tokens), is_masked)
    selected = is_masked.nonzero().flatten().tolist() if head.rows == "mask" else []
    types = tokens["token_type_ids"][0].tolist() if "token_type_ids" in tokens else [0] * len(ids)
    return {"ids": ids.tolist(), "types": types, "selected": selected, "outputs": found.float()}
