"""The network of an archive as a careful user of plain PyTorch runs it: half precision on a GPU, whole batches.

Shared by the servers of peers, which run as programs of their own.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from handlers.engines import networks
from handlers.engines.text_networks import load_transformer

TOP = 5


class Images:
    """Encoded images -> labels with probabilities."""

    def __init__(self, folder: Path, handler: dict[str, Any], device: str) -> None:
        self.preprocess = handler["preprocess"]
        self.device = torch.device(device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        network = networks.load(folder, self.dtype)
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        self.mean, self.std = (self._constant(key) for key in ("mean", "std"))

    def _constant(self, key: str) -> torch.Tensor:
        return torch.tensor(self.preprocess[key], device=self.device).view(1, 3, 1, 1) * 255

    def decode(self, body: bytes) -> torch.Tensor:
        """(3, S, S) uint8: the shorter side resized, the middle cut out."""
        size, shorter = int(self.preprocess["size"]), int(self.preprocess["resize"])
        with Image.open(io.BytesIO(body)) as opened:
            image = opened.convert("RGB")
        scale = shorter / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        crop = np.array(image.crop((left, top, left + size, top + size)))
        return torch.from_numpy(crop).permute(2, 0, 1)

    @torch.inference_mode()
    def run(self, crops: Sequence[torch.Tensor]) -> list[Any]:
        """Top labels for each crop."""
        images = (torch.stack(list(crops)).to(self.device).float() - self.mean) / self.std
        logits = self.network(images.to(self.dtype).contiguous(memory_format=torch.channels_last)).logits
        values, places = logits.float().softmax(1).topk(min(TOP, len(self.labels)))
        return [
            [{"label": self.labels[place], "probability": value} for value, place in zip(*pair, strict=True)]
            for pair in zip(values.tolist(), places.tolist(), strict=True)
        ]


class Texts:
    """Lists of texts -> lists of embeddings."""

    def __init__(self, folder: Path, handler: dict[str, Any], device: str) -> None:
        from transformers import AutoTokenizer

        self.device = torch.device(device)
        dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.most = int(handler["maxTokens"])
        self.normalize = bool(handler.get("pooling", {}).get("normalize"))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.network = load_transformer(folder, "embeddings", dtype=dtype).eval().to(self.device)

    def decode(self, body: bytes) -> list[str]:
        """text/plain, or a JSON list."""
        text = body.decode()
        texts: list[str] = json.loads(text) if text.startswith("[") else [text]
        return texts

    @torch.inference_mode()
    def run(self, asked: Sequence[list[str]]) -> list[Any]:
        """A list of vectors for each list of texts: padded, in one batch, mean pooling."""
        texts = [text for one in asked for text in one]
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=self.most, return_tensors="pt")
        inputs = inputs.to(self.device)
        hidden = self.network(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"].unsqueeze(-1)
        vectors = (hidden * mask).sum(1) / mask.sum(1)
        if self.normalize:
            vectors = torch.nn.functional.normalize(vectors)
        found = iter(vectors.cpu().tolist())
        return [[next(found) for _ in one] for one in asked]


def load(job: dict[str, Any], device: str) -> Images | Texts:
    """The network that a peer's job names."""
    kind = Images if job["kind"] == "image-classifier" else Texts
    return kind(Path(job["folder"]), job["handler"], device)
