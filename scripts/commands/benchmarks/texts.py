"""The workload of a text encoder: a BERT's folder, token ids for it, their fp32 token vectors, its layers."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archive import presets
from archive.parity import Array
from benchmarks import engine_loading, layers
from benchmarks.layers import Layer
from benchmarks.points import Point, label, lengths_of
from handlers import LOCAL
from handlers.encoder.fp8 import FILE, write
from handlers.encoder.packed import PackedModel
from handlers.encoder.packing import TokenBatch
from handlers.engines import EngineSpec, LoadedEngine
from handlers.engines.text_networks import load_transformer
from handlers.texts.micro_batches import micro_batches
from handlers.texts.network_inputs import positions_of

PRESET = presets.of_command("bert-large")
CALIBRATION = (128,) * 8
KNOWN_SIZES = {(12, 768): "base", (24, 1024): "large"}


@dataclass(frozen=True)
class TextWorkload:
    """A BERT-style encoder, its inputs and its reference outputs.

    config: that of transformers. token_budget: of a micro-batch of a mix; 0: each engine's own. vectors: by point,
    (T, hidden) of all tokens, from transformers' eager network in fp32.
    """

    model: str
    config: Any
    device: torch.device
    token_budget: int
    vectors: dict[Point, Array]

    unit = "sequences/s"

    def inputs(self, point: Point, precision: str, engine: LoadedEngine) -> list[TokenBatch]:
        """Random token ids, the same in each run: one batch, or the micro-batches of a mix, longest first."""
        seed = zlib.crc32(repr(point).encode())
        return token_batches(self.config, self.micro_batches(point, engine), self.device, seed)

    def micro_batches(self, point: Point, engine: LoadedEngine) -> list[tuple[int, ...]]:
        """The lengths that go through the network together. A mix is cut as the handler cuts it for this engine."""
        lengths = lengths_of(point)
        if point.mix is None:
            return [lengths]
        parts = micro_batches(lengths, self.token_budget or engine.token_budget, engine.pads)
        return [tuple(lengths[index] for index in part) for part in parts]

    def reference(self, point: Point) -> Array:
        """The fp32 vectors of `inputs`, (T, hidden): tokens and order do not depend on how a mix is cut."""
        return self.vectors[point]

    def layers_at(self, point: Point) -> list[Layer]:
        """What the point's real tokens cost in one call."""
        return layers.encoder_layers(self.config, lengths_of(point))

    def about(self, point: Point) -> dict[str, int]:
        """A mix's size, for the conditions."""
        lengths = lengths_of(point)
        return {"sequences": len(lengths), "tokens": sum(lengths), "longest": max(lengths)}


def token_batches(config: Any, parts: Sequence[Sequence[int]], device: torch.device, seed: int) -> list[TokenBatch]:
    """Sequences of these lengths, of random tokens other than padding, all of token type 0."""
    skipped = int(config.pad_token_id or 0)
    drawn = np.random.default_rng(seed).integers(0, config.vocab_size - 1, sum(map(sum, parts)))
    ids = iter(np.where(drawn >= skipped, drawn + 1, drawn).tolist())
    rows = [[list(islice(ids, length)) for length in lengths] for lengths in parts]
    return [TokenBatch.pack(part, [[0] * len(row) for row in part], device) for part in rows]


def workload(spec: EngineSpec, points: Sequence[Point], token_budget: int) -> TextWorkload:
    """Read the spec's Hugging Face folder, and compute the network's fp32 vectors at all points.

    Raises ValueError for lengths that the model does not take, and for a network that is no BERT-style encoder.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(spec.model_dir, **LOCAL)
    check(config, points)
    found = TextWorkload(model_name(config), config, spec.device, token_budget, {})
    reference = engine_loading.load("hf-eager-fp32", spec)
    for point in points:
        outputs = [reference.run(batch).cpu() for batch in found.inputs(point, "fp32", reference)]
        vectors = torch.cat(outputs).numpy()  # (T, hidden)
        if not np.isfinite(vectors).all():
            raise ValueError(
                f"the fp32 outputs of {spec.model_dir} are not finite, so nothing can be compared with them"
            )
        found.vectors[point] = vectors
    return found


def check(config: Any, points: Sequence[Point]) -> None:
    """Raises ValueError if the config lacks the sizes of an encoder, or if a point is too long for it."""
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"):
        if not hasattr(config, key):
            raise ValueError(f"a {config.model_type} came, whose config has no {key}; wanted: a BERT-style encoder")
    limit = positions_of(config.to_dict())
    for point in points:
        longest = max(lengths_of(point))
        if limit is not None and longest > limit:
            raise ValueError(
                f"point {label(point)} has {longest} tokens, and the model takes {limit}; --points has others"
            )


def model_name(config: Any) -> str:
    """bert-large or bert-base; for other sizes the number of layers and the hidden size, such as bert-6x384."""
    size = (config.num_hidden_layers, config.hidden_size)
    return f"{config.model_type}-{KNOWN_SIZES.get(size, f'{size[0]}x{size[1]}')}"


def model_folder(model_dir: Path | None, folder: Path, fp8: bool) -> Path:
    """The folder that engines read: model_dir, or `folder` with random weights if that is None.

    fp8: whether engines need a calibration. If model_dir has none, `folder` gets a copy, calibrated on random tokens.
    """
    if model_dir is None:
        write_random(folder)
    if not fp8 or (model_dir and (model_dir / FILE).is_file()):
        return model_dir or folder
    if model_dir is not None:
        shutil.copytree(model_dir, folder, dirs_exist_ok=True)
    network = load_transformer(folder, "embeddings", dtype=torch.float32).eval()
    batches = token_batches(network.config, [CALIBRATION], torch.device("cpu"), seed=0)
    write(PackedModel(network, "embeddings").calibrate_fp8(batches), folder)
    return folder


def write_random(folder: Path) -> None:
    """A BERT-Large with random weights, as `scripts/package bert-large --random-weights` makes it."""
    from archive import random_weights

    config = random_weights.bert_config(PRESET.architecture)
    random_weights.text_checkpoint(config, _stand_in_tokenizer(folder / "tokenizer")).model.save_pretrained(folder)


def _stand_in_tokenizer(folder: Path) -> Path:
    """A tokenizer with one token. A checkpoint must have a tokenizer, and nothing is tokenized here."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, "[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)  # noqa: S106
    return folder


def spec_of(folder: Path, device: torch.device, points: Sequence[Point], plans: Path) -> EngineSpec:
    """The spec for all engines; each engine's precision replaces fp32."""
    spec = EngineSpec("text-encoder", folder, device, "fp32", task="embeddings", plan_cache=plans)
    return replace(spec, batch_size=max(point.batch for point in points))
