"""What an archive carries of the parity gate's samples, for the worker to compare its engine with.

See handlers/selection/references.py. The outputs are the checkpoint's own, run by transformers in fp32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import torch

from archive.jobs import ImageJob, Job, TextJob
from handlers.engines.image_inputs import outputs, placed
from handlers.images.processors import shapes_of
from handlers.selection.references import COUNT, LONGEST, Images, Texts

CHARACTERS_A_TOKEN = 8  # at most, in the mean, so that a text of so many is long enough to be cut

T = TypeVar("T")


@torch.inference_mode()
def write(job: Job, folder: Path) -> None:
    """Put `parity.safetensors` into the folder."""
    if isinstance(job, ImageJob):
        _of_images(job).save(folder)
    elif isinstance(job, TextJob):
        _of_texts(job).save(folder)


def spread(samples: Sequence[T], count: int) -> list[T]:
    """So many of them, evenly from the first to the last; all of fewer."""
    if len(samples) <= count:
        return list(samples)
    return [samples[place * (len(samples) - 1) // (count - 1)] for place in range(count)]


def _of_images(job: ImageJob) -> Images:
    pipeline = job.pipeline()
    inputs = [item for sample in spread(job.samples(), COUNT) for item in pipeline.prepare(sample)][:COUNT]
    alike = [
        index for batch in pipeline.batches(inputs, COUNT) for index in batch if _same(inputs[batch[0]], inputs[0])
    ]
    images = pipeline.batch([inputs[index] for index in alike])
    cpu = torch.device("cpu")
    half = placed(images, cpu, torch.float16)  # the reference is of these exactly
    return Images(half, outputs(job.checkpoint.network(), placed(half, cpu, torch.float32)))


def _same(first: Any, second: Any) -> bool:
    """Whether two inputs of the network have the same shapes, so that one batch can hold both."""
    if isinstance(first, Mapping):
        return shapes_of(dict(first)) == shapes_of(dict(second))
    return True  # crops and normalised images, which the batcher makes alike


def _of_texts(job: TextJob) -> Texts:
    lines = [sample.decode() for sample in job.samples()]
    texts = [*spread(lines, COUNT), _long(lines, job)]
    texts = [text.lower() if job.settings.lower_case else text for text in texts]
    rows = [_run(job, text) for text in texts]
    rows = [row for row in rows if len(row["outputs"])]  # of a masked-word task, those whose mask is left
    masked = job.settings.task == "fill-mask"
    return Texts(
        job.settings.task,
        [row["ids"] for row in rows],
        [row["types"] for row in rows],
        [row["selected"] for row in rows] if masked else [],
        [row["outputs"] for row in rows],
    )


def _long(lines: Sequence[str], job: TextJob) -> str:
    """One text of all lines that is longer than the model takes; only its first line has a masked word."""
    mask, size = job.checkpoint.tokenizer.mask_token, 0
    parts: list[str] = []
    for line in cycle(lines):
        parts.append(line.replace(mask, "") if mask and parts else line)
        size += len(line) + 1
        if size > CHARACTERS_A_TOKEN * min(job.settings.max_tokens, LONGEST):
            return " ".join(parts)
    raise ValueError("there are no samples")


def _run(job: TextJob, text: str) -> dict[str, Any]:
    """One text alone, cut to the model's maximum: its tokens, and what the task reads from the network."""
    tokenizer, most = job.checkpoint.tokenizer, min(job.settings.max_tokens, LONGEST)
    tokens = tokenizer(text, truncation=True, max_length=most, return_tensors="pt")
    ids = tokens["input_ids"][0]
    outputs, selected = job.checkpoint.model(**tokens), []
    if job.settings.task == "embeddings":
        found = outputs.last_hidden_state[0]  # (T, hidden)
    elif job.settings.task == "sequence-classification":
        found = outputs.logits  # (1, labels)
    elif job.settings.task == "token-classification":
        found = outputs.logits[0]  # (T, labels)
    else:
        selected = (ids == tokenizer.mask_token_id).nonzero().flatten().tolist()
        found = outputs.logits[0][selected]  # (M, vocabulary)
    types = tokens["token_type_ids"][0].tolist() if "token_type_ids" in tokens else [0] * len(ids)
    return {"ids": ids.tolist(), "types": types, "selected": selected, "outputs": found.float()}
