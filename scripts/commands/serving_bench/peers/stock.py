"""TorchServe's stock image_classifier, and the usual handler for a Hugging Face encoder, in the same TorchServe."""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from handlers.engines import networks
from serving_bench import archives
from serving_bench.archives import IMAGES, Archive
from serving_bench.peers import network_objection, unpack
from serving_bench.peers.needs import Needs

NAME = "stock"
WHAT = "TorchServe's image_classifier (TorchScript, fp32), or the usual Hugging Face handler (fp32)"
STOCK_HANDLER = "image_classifier"
TEXT_HANDLER = Path(__file__).with_name("hf_text_handler.py")
# pip would replace PyTorch by the one that fits the newest torchvision.
PYTORCH = f"torch=={importlib.metadata.version('torch')}"
# The handler for texts comes with this project.
NEEDS = Needs(
    "captum", f"ts.torch_handler.{STOCK_HANDLER}", packages=("captum", "torchvision", PYTORCH), kinds=(IMAGES,)
)
SAME_ARCHIVE = False
ON_SEVERAL_GPUS = True
objection = network_objection


def make(archive: Archive, store: Path) -> Archive:
    """Make an archive with the same network, batch size and delay."""
    folder = unpack(archive, store.parent)
    name = f"{NAME}-{archive.name}"
    if archive.kind == IMAGES:
        model, labels = folder / "model.pt", folder / "index_to_name.json"
        _script(folder, int(archive.handler["preprocess"]["size"]), model)
        names = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        labels.write_text(json.dumps({str(index): label for index, label in enumerate(names)}), encoding="utf-8")
        options = ("--serialized-file", str(model), "--extra-files", str(labels))
        return archives.make(store, name, STOCK_HANDLER, archive.batching, *options)
    files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    found = [str(folder / file) for file in files if (folder / file).is_file()]
    pooling = archive.handler.get("pooling", {})
    config = {
        **archive.batching,
        "maxTokens": archive.handler["maxTokens"],
        "normalize": bool(pooling.get("normalize")),
    }
    return archives.make(store, name, TEXT_HANDLER, config, "--extra-files", ",".join(found))


class _Logits(torch.nn.Module):
    """A network of transformers that returns only its logits."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images).logits
        return logits


def _script(folder: Path, size: int, target: Path) -> None:
    """Write the network as TorchScript, which the stock handler loads."""
    network = _Logits(networks.load(folder, torch.float32))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but the stock handler takes nothing else
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, size, size)), target)
