"""What an engine has to compute: a few samples with their outputs in fp32.

Packaging puts them into the archive (`parity.safetensors`): outputs of its checkpoint, run by transformers on a CPU.
An archive without them, or with those of another image size or task, is compared with transformers' network in fp32
on the CPU of the machine that serves.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from handlers.encoder.packing import TokenBatch
from handlers.engines import Engine, EngineSpec, image_inputs, load
from handlers.engines.graphs import sizes_up_to
from handlers.selection import figures
from handlers.selection.figures import Figure

FILE = "parity.safetensors"
COUNT = 7  # images, or short texts. Odd, so that in a batch of repeated samples no two blocks of rows are alike
LONGEST = 1024  # tokens of the longest text; more would take a CPU too long
# What is compared on a CPU: a large network takes a second for an image, ten for 512 tokens, and runs the same few
# kernels at any size. On a GPU sizes decide which kernels run.
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
    """Images and what the network puts out for them.

    images: the network's input for N images, (N, 3, S, S) normalised.
    outputs: fp32, (N, classes) logits or (N, features).
    """

    images: Any  # a tensor, or tensors by name: see handlers/engines/image_inputs.py
    outputs: torch.Tensor
    source: str = OF_ARCHIVE

    def save(self, folder: Path) -> None:
        """Write FILE."""
        named = self.images if isinstance(self.images, Mapping) else {"": self.images}
        images = {f"images{name and '.'}{name}": value.contiguous() for name, value in named.items()}
        save_file({**images, "outputs": self.outputs.contiguous()}, folder / FILE, {"kind": "image-classifier"})

    def batch(self, spec: EngineSpec, count: int) -> Any:
        """(count, 3, S, S) in the spec's dtype, on its device, channels_last: the images over and over."""
        return image_inputs.placed(image_inputs.rows(self.images, self._places(count)), spec.device, spec.dtype)

    def logits(self, count: int) -> torch.Tensor:
        """(count, classes) of `batch`."""
        return self.outputs[self._places(count)]

    def compare(self, engine: Engine, spec: EngineSpec) -> Figure:
        """Run batches of every size that is served, the largest first, whose memory the others then share."""
        on_gpu = spec.device.type == "cuda"
        sizes = sizes_up_to(spec.batch_size) if on_gpu else [min(CPU_IMAGES, len(self.outputs))]
        return worst_that_fit(lambda size: self.figure(engine, spec, size), sizes[::-1])

    def figure(self, engine: Engine, spec: EngineSpec, size: int) -> Figure:
        """Of a batch of so many images."""
        compare = figures.of_embeddings if spec.task == "embeddings" else figures.of_logits
        return compare(engine.run(self.batch(spec, size)), self.logits(size), spec.precision)

    def _places(self, count: int) -> torch.Tensor:
        return torch.arange(count) % len(self.outputs)


@dataclass(frozen=True)
class Texts:
    """Texts as tokens, and what the network puts out for each.

    ids, types: of each text. selected: of a masked-word task, the positions in each text that are read; else empty.
    outputs: fp32 of each text: (tokens, hidden) for embeddings, (1, labels) for sequence-classification,
    (tokens, labels) for token-classification, (selected, vocabulary) for fill-mask.
    """

    task: str
    ids: Sequence[Sequence[int]]
    types: Sequence[Sequence[int]]
    selected: Sequence[Sequence[int]]
    outputs: Sequence[torch.Tensor]
    source: str = OF_ARCHIVE

    def save(self, folder: Path) -> None:
        """Write FILE."""
        rows = {"ids": self.ids, "types": self.types, "selected": self.selected}
        flat = {name: torch.tensor([item for row in found for item in row]).long() for name, found in rows.items()}
        counts = {f"{name}_counts": torch.tensor([len(row) for row in found]).long() for name, found in rows.items()}
        output_counts = torch.tensor([len(rows) for rows in self.outputs])
        outputs = {"outputs": torch.cat(list(self.outputs)).contiguous(), "outputs_counts": output_counts}
        save_file({**flat, **counts, **outputs}, folder / FILE, {"kind": "text-encoder", "task": self.task})

    def compare(self, engine: Engine, spec: EngineSpec) -> Figure:
        """Run each text alone, all in one batch, and as many as run at once; on a CPU a batch of the short ones."""
        everything = list(range(len(self.ids)))
        batches = [*([place] for place in everything), everything, everything * self._repeats(engine, spec)]
        if spec.device.type != "cuda":
            short = [place for place in everything if len(self.ids[place]) <= CPU_TOKENS]
            batches = [short or [min(everything, key=lambda place: len(self.ids[place]))]]
        return worst_that_fit(lambda places: self._figure(engine, spec, places), batches)

    def _repeats(self, engine: Engine, spec: EngineSpec) -> int:
        """How often the texts fit into the tokens that run at once."""
        lengths = [len(row) for row in self.ids]
        tokens = max(lengths) * len(lengths) if engine.pads else sum(lengths)
        return max(1, (spec.token_budget or engine.token_budget) // tokens)

    def _figure(self, engine: Engine, spec: EngineSpec, places: Sequence[int]) -> Figure:
        batch = self.batch(places, spec.device)
        outputs, wanted = engine.run(batch), torch.cat([self.outputs[place] for place in places])
        if self.task != "embeddings":
            return figures.of_logits(outputs, wanted, spec.precision)
        from handlers.tasks.embeddings import pool

        embeddings = pool(outputs, batch.cu_seqlens, spec.pooling)
        return figures.of_embeddings(
            embeddings, pool(wanted, batch.cu_seqlens.to(wanted.device), spec.pooling), spec.precision
        )

    def batch(self, places: Sequence[int], device: torch.device) -> TokenBatch:
        """The texts at these places, packed."""
        ids, types = [self.ids[place] for place in places], [self.types[place] for place in places]
        if not self.selected:
            return TokenBatch.pack(ids, types, device)
        starts = accumulate(map(len, ids), initial=0)
        chosen = [start + at for start, place in zip(starts, places, strict=False) for at in self.selected[place]]
        return TokenBatch.pack(ids, types, device, chosen)


Reference = Images | Texts


def of(spec: EngineSpec) -> Reference:
    """The archive's reference, else one computed here. Raises ValueError for an archive whose file is damaged."""
    path = spec.model_dir / FILE
    if path.is_file():
        found = _read(path)
        if _fits(found, spec):
            return found
        logger.warning("%s is of another task or image size, so the reference is computed here", FILE)
    return compute(spec)


def compute(spec: EngineSpec) -> Reference:
    """Samples of this file's own, and their outputs through transformers in fp32 on the CPU."""
    exact = load("torch_eager", dataclasses.replace(spec, precision="fp32", device=torch.device("cpu")))
    if spec.kind == "image-classifier":
        if not spec.image_size:
            raise ValueError(f"the archive holds no {FILE} for its image processor; package it again")
        count = COUNT if spec.device.type == "cuda" else CPU_IMAGES
        shape = (count, 3, spec.image_size, spec.image_size)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half().float()
        return Images(images, exact.run(images), OF_THIS_MACHINE)
    return _compute_texts(spec, exact)


def is_reference(name: str, spec: EngineSpec) -> bool:
    """Whether the engine is what `compute` would compare it with."""
    exact = name == "torch_eager" and spec.precision == "fp32" and spec.device.type == "cpu"
    return exact and not (spec.model_dir / FILE).is_file()


def worst_that_fit(compare: Callable[[T], Figure], batches: Sequence[T]) -> Figure:
    """Over the batches for which memory suffices. Raises torch.OutOfMemoryError if that is none."""
    kept: list[Figure] = []
    for place, batch in enumerate(batches):
        try:
            kept.append(compare(batch))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if not kept and place == len(batches) - 1:
                raise
            logger.warning("one of %d batches was not compared with fp32: memory is short", len(batches))
    return dataclasses.replace(figures.worst(kept), complete=len(kept) == len(batches))


def _compute_texts(spec: EngineSpec, exact: Engine) -> Texts:
    ids = _token_ids(spec)
    types = [[0] * len(row) for row in ids]
    selected = [[len(row) // 2] for row in ids] if spec.task == "fill-mask" else []
    texts = Texts(spec.task, ids, types, selected, [], OF_THIS_MACHINE)
    outputs = [exact.run(texts.batch([place], torch.device("cpu"))) for place in range(len(ids))]
    return dataclasses.replace(texts, outputs=outputs)


def _token_ids(spec: EngineSpec) -> list[list[int]]:
    """SENTENCES, and for a GPU a text of all of them that is as long as the model takes."""
    import tokenizers

    from handlers.texts.network_inputs import positions_of

    tokenizer = tokenizers.Tokenizer.from_file(str(spec.model_dir / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = json.loads((spec.model_dir / "config.json").read_text(encoding="utf-8"))
    most = min(spec.max_tokens, positions_of(config) or LONGEST, LONGEST)
    long = [" ".join(SENTENCES * (1 + LONGEST // 100))] if spec.device.type == "cuda" else []
    ids = (tokenizer.encode(text).ids[:most] for text in (*SENTENCES, *long))
    return [row for row in ids if row]


def _fits(found: Reference, spec: EngineSpec) -> bool:
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
