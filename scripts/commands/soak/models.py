"""The archives that are soaked: the two demo models, a second version of one, and a small reranker."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from demo import DIGITS, SENTENCES, demo_text_encoder
from server.paths import ROOT

RERANKER = "reranker"
SECOND, SECOND_VERSION = "digits-2", "2.0"
HIDDEN = 32


def package(store: Path) -> dict[str, Path]:
    """Package all archives into `store`; quick if they are up to date. Returns the files by name.

    Raises subprocess.CalledProcessError if an archive is refused, ServerError if the encoder's package is missing.
    """
    store.mkdir(parents=True, exist_ok=True)
    image = ["image-classifier", "--weights", "archive/digits", "--parity-data", "archive/digits/samples"]
    checkpoint = store / "reranker-checkpoint"
    write_reranker(checkpoint)
    _package(store, DIGITS, *image)
    _package(store, SECOND, *image, "--model-version", SECOND_VERSION)
    _package(store, SENTENCES, "text-encoder", "--weights", str(demo_text_encoder()))
    _package(store, RERANKER, "text-encoder", "--weights", str(checkpoint), "--precision", "fp32")
    return {name: store / f"{name}.mar" for name in (DIGITS, SECOND, SENTENCES, RERANKER)}


def _package(store: Path, name: str, *arguments: str) -> None:
    target = ["--name", name, "--export-path", str(store)]
    subprocess.run([sys.executable, "-m", "archive", *arguments, *target], cwd=ROOT, check=True)


def write_reranker(folder: Path) -> None:
    """Write a checkpoint with one label and one layer, unless it is there; its scores differ from text to text."""
    if (folder / "model.safetensors").is_file():
        return
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=HIDDEN,
        id2label={0: "LABEL_0"},
        initializer_range=0.5,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_text_encoder() / name, folder / name)
