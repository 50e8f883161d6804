"""What an engine has to compute: a few samples with their outputs in fp32.

Packaging writes them into the archive (`parity.safetensors`): the checkpoint's outputs, run by transformers on a CPU.
If an archive has none, or has them for another image size or task, they are computed on the machine that serves, by
transformers in fp32 on its CPU.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from handlers import engines, phases, tasks
from handlers.encoder.packing import TokenBatch
from handlers.engines import EngineSpec, LoadedEngine, image_inputs
from handlers.engines.graphs import sizes_up_to
from handlers.selection import deviations
from handlers.selection.deviations import Deviation
from handlers.tasks.embeddings import pool
from handlers.texts.network_inputs import positions_of

FILE = "parity.safetensors"
COUNT = 7  # images, or short texts. Odd, so that in a batch of repeated samples no two blocks of rows are equal
LONGEST = 1024  # tokens of the longest text; more would take a CPU too long
# What is compared on a CPU. A large network takes a second for an image and ten for 512 tokens, and runs the same few
# kernels at any size. On a GPU the size decides which kernels run.
CPU_IMAGES, CPU_TOKENS = 2, 128
OF_ARCHIVE = "the archive's fp32 reference"
OF_THIS_MACHINE = "transformers in fp32 on this CPU"

SENTENCES = (
    "Yes.",
    "Where is my parcel?",
    "The northern lights are green.",
    "She opened the letter, read it twice, and put it back into the drawer without a word.",
    "Prices rose by 3.5 % in 2019, and by 12 % in the two years that followed.",
    "The bridge was closed for repairs; buses take the road along the river instead, every 20 minutes.",
    "A good knife, an onion and a little patience are all that this soup needs, my grandmother used to say.",
)

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Images:
    """Images, and what the network puts out for them.

    Args:
        images: the network's input for N images, fp32: (N, 3, S, S) normalised, or tensors by the names of the
            network's parameters (handlers/engines/image_inputs.py).
        outputs: (N, classes) logits or (N, features), fp32.
        source: where the outputs come from, in words.
    """

    images: image_inputs.ImageInputs
    outputs: torch.Tensor
    source: str = OF_ARCHIVE

    def save(self, folder: Path) -> None:
        """Write FILE into an archive's folder."""
        named = self.images if isinstance(self.images, Mapping) else {"": self.images}
        images = {f"images{name and '.'}{name}": value.contiguous() for name, value in named.items()}
        save_file({**images, "outputs": self.outputs.contiguous()}, folder / FILE, {"kind": "image-classifier"})

    def batch(self, spec: EngineSpec, count: int) -> image_inputs.ImageInputs:
        """Return a batch of repeated images: (count, 3, S, S), channels_last, in the spec's dtype on its device."""
        return image_inputs.placed(image_inputs.rows(self.images, self._indices(count)), spec.device, spec.dtype)

    def logits(self, count: int) -> torch.Tensor:
        """Return the outputs of such a batch: (count, classes) fp32."""
        return self.outputs[self._indices(count)]

    def compare(self, engine: LoadedEngine, spec: EngineSpec) -> Deviation:
        """Compare an engine in batches of every size that is served.

        The largest comes first: the others then reuse its memory.

        Returns: the worst deviation. Raises as `worst_that_fit`.
        """
        on_gpu = spec.device.type == "cuda"
        sizes = sizes_up_to(spec.batch_size) if on_gpu else [min(CPU_IMAGES, len(self.outputs))]
        return worst_that_fit(lambda size: self.deviation(engine, spec, size), sizes[::-1])

    def deviation(self, engine: LoadedEngine, spec: EngineSpec, size: int) -> Deviation:
        """Compare an engine in one batch of `size` images."""
        compare = deviations.of_embeddings if spec.task == "embeddings" else deviations.of_logits
        return compare(engine.run(self.batch(spec, size)), self.logits(size), spec.precision)

    def _indices(self, count: int) -> torch.Tensor:
        return torch.arange(count) % len(self.outputs)


@dataclass(frozen=True)
class Texts:
    """Texts as tokens, and their outputs.

    Args:
        task: one of settings.TEXT_TASKS.
        ids: token ids of each text.
        types: token types of each text.
        selected: for fill-mask, the positions in each text whose outputs are read; else empty.
        outputs: fp32, of each text: (tokens, hidden) for embeddings, (1, labels) for sequence-classification,
            (tokens, labels) for token-classification, (selected, vocabulary) for fill-mask, (1, vocabulary) pooled
            for sparse-embeddings.
        source: where the outputs come from, in words.
    """

    task: str
    ids: Sequence[Sequence[int]]
    types: Sequence[Sequence[int]]
    selected: Sequence[Sequence[int]]
    outputs: Sequence[torch.Tensor]
    source: str = OF_ARCHIVE

    def save(self, folder: Path) -> None:
        """Write FILE into an archive's folder."""
        rows = {"ids": self.ids, "types": self.types, "selected": self.selected}
        flat = {name: torch.tensor([item for row in found for item in row]).long() for name, found in rows.items()}
        counts = {f"{name}_counts": torch.tensor([len(row) for row in found]).long() for name, found in rows.items()}
        output_counts = torch.tensor([len(rows) for rows in self.outputs])
        outputs = {"outputs": torch.cat(list(self.outputs)).contiguous(), "outputs_counts": output_counts}
        save_file({**flat, **counts, **outputs}, folder / FILE, {"kind": "text-encoder", "task": self.task})

    def compare(self, engine: LoadedEngine, spec: EngineSpec) -> Deviation:
        """Compare an engine on each text alone, on all together, and on as many as run at once.

        On a CPU it is compared on the short texts only, all together.

        Returns: the worst deviation. Raises as `worst_that_fit`.
        """
        everything = list(range(len(self.ids)))
        batches = [*([index] for index in everything), everything, everything * self._repeats(engine, spec)]
        if spec.device.type != "cuda":
            short = [index for index in everything if len(self.ids[index]) <= CPU_TOKENS]
            batches = [short or [min(everything, key=lambda index: len(self.ids[index]))]]
        return worst_that_fit(lambda indices: self._deviation(engine, spec, indices), batches)

    def _repeats(self, engine: LoadedEngine, spec: EngineSpec) -> int:
        """Return how many times all texts fit into the tokens that run at once; at least 1."""
        lengths = [len(row) for row in self.ids]
        tokens = max(lengths) * len(lengths) if engine.pads else sum(lengths)
        return max(1, (spec.token_budget or engine.token_budget) // tokens)

    def _deviation(self, engine: LoadedEngine, spec: EngineSpec, indices: Sequence[int]) -> Deviation:
        """Compare an engine in one batch of these texts."""
        batch = self.batch(indices, spec.device)
        outputs, wanted = engine.run(batch), torch.cat([self.outputs[index] for index in indices])
        head = tasks.head(self.task)
        if head.pools_logits:
            return deviations.of_embeddings(outputs, wanted, spec.precision)
        if not head.is_embedding:
            return deviations.of_logits(outputs, wanted, spec.precision)
        embeddings = pool(outputs, batch.cu_seqlens, spec.pooling)
        exact = pool(wanted, batch.cu_seqlens.to(wanted.device), spec.pooling)
        return deviations.of_embeddings(embeddings, exact, spec.precision)

    def batch(self, indices: Sequence[int], device: torch.device) -> TokenBatch:
        """Return the texts at these indices, packed."""
        ids, types = [self.ids[index] for index in indices], [self.types[index] for index in indices]
        if not self.selected:
            return TokenBatch.pack(ids, types, device)
        starts = accumulate(map(len, ids), initial=0)
        chosen = [start + at for start, index in zip(starts, indices, strict=False) for at in self.selected[index]]
        return TokenBatch.pack(ids, types, device, chosen)


Reference = Images | Texts


def of(spec: EngineSpec) -> Reference:
    """Return the archive's reference, or one that is computed here. Raises ValueError if the archive's is damaged."""
    path = spec.model_dir / FILE
    if path.is_file():
        found = _read(path)
        if _fits(found, spec):
            return found
        logger.warning("%s is of another task or image size, so the reference is computed here", FILE)
    return compute(spec)


def compute(spec: EngineSpec) -> Reference:
    """Compute a reference: this file's own samples, run by transformers in fp32 on the CPU."""
    exact = engines.load("torch_eager", dataclasses.replace(spec, precision="fp32", device=torch.device("cpu")))
    if spec.kind == "image-classifier":
        if not spec.image_size:
            raise ValueError(f"the archive holds no {FILE} for its image processor; package it again")
        count = COUNT if spec.device.type == "cuda" else CPU_IMAGES
        shape = (count, 3, spec.image_size, spec.image_size)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half().float()
        return Images(images, exact.run(images), OF_THIS_MACHINE)
    return _compute_texts(spec, exact)


def is_reference(name: str, spec: EngineSpec) -> bool:
    """Whether `compute` would compare the engine with itself."""
    exact = name == "torch_eager" and spec.precision == "fp32" and spec.device.type == "cpu"
    return exact and not (spec.model_dir / FILE).is_file()


def worst_that_fit(compare: Callable[[T], Deviation], batches: Sequence[T]) -> Deviation:
    """Compare batch after batch, leaving out those that memory does not suffice for.

    Returns: the worst deviation; `complete` is False if a batch was left out.

    Raises:
        torch.OutOfMemoryError: if memory suffices for none.
    """
    found: list[Deviation] = []
    for index, batch in enumerate(batches):
        try:
            with phases.phase("comparison"):
                found.append(compare(batch))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if not found and index == len(batches) - 1:
                raise
            logger.warning("one of %d batches was not compared with fp32: memory is short", len(batches))
    return dataclasses.replace(deviations.worst(found), complete=len(found) == len(batches))


def _compute_texts(spec: EngineSpec, exact: LoadedEngine) -> Texts:
    ids = _token_ids(spec)
    types = [[0] * len(row) for row in ids]
    selected = [[len(row) // 2] for row in ids] if tasks.head(spec.task).rows == "mask" else []
    texts = Texts(spec.task, ids, types, selected, [], OF_THIS_MACHINE)
    outputs = [exact.run(texts.batch([index], torch.device("cpu"))) for index in range(len(ids))]
    return dataclasses.replace(texts, outputs=outputs)


def _token_ids(spec: EngineSpec) -> list[list[int]]:
    """Return the token ids of SENTENCES, and for a GPU of a text that is as long as the model takes."""
    tokenizer = tokenizers.Tokenizer.from_file(str(spec.model_dir / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = json.loads((spec.model_dir / "config.json").read_text(encoding="utf-8"))
    most = min(spec.max_tokens, positions_of(config) or LONGEST, LONGEST)
    long = [" ".join(SENTENCES * (1 + LONGEST // 100))] if spec.device.type == "cuda" else []
    ids = (tokenizer.encode(text).ids[:most] for text in (*SENTENCES, *long))
    return [row for row in ids if row]


def _fits(found: Reference, spec: EngineSpec) -> bool:
    """Whether the reference is for the spec's task or image size."""
    if isinstance(found, Images):
        same = isinstance(found.images, torch.Tensor) and found.images.shape[-1] == spec.image_size
        return spec.kind == "image-classifier" and (same or not spec.image_size)
    return spec.kind == "text-encoder" and found.task == spec.task


def _read(path: Path) -> Reference:
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.get("kind") == "image-classifier":
            return _read_images(tensors)
        return _read_texts(about["task"], tensors)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged; package the archive again: {type(error).__name__}") from None


def _read_images(tensors: dict[str, torch.Tensor]) -> Images:
    outputs = tensors.pop("outputs")
    if "images" in tensors:
        return Images(tensors["images"].float(), outputs)
    named = {name.removeprefix("images."): value for name, value in tensors.items()}
    return Images(
        {name: value.float() if value.is_floating_point() else value for name, value in named.items()}, outputs
    )


def _read_texts(task: str, tensors: Mapping[str, torch.Tensor]) -> Texts:
    def rows(name: str) -> list[torch.Tensor]:
        return list(tensors[name].split(tensors[f"{name}_counts"].tolist()))

    ids, types, selected = ([row.tolist() for row in rows(name)] for name in ("ids", "types", "selected"))
    return Texts(task, ids, types, selected, rows("outputs"))
