"""What goes into one archive, by kind: settings, files, samples for the parity gate, and their fp32 reference."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from archive import convert, reference_pixels
from archive.checkpoints import image_processors
from archive.checkpoints.image_checkpoints import ImageCheckpoint
from archive.checkpoints.text_checkpoints import TextCheckpoint
from archive.parity import PRECISIONS, Array
from handlers import settings
from handlers.encoder import fp8
from handlers.encoder.packed import PackedModel
from handlers.encoder.packing import TokenBatch
from handlers.engines.image_inputs import outputs
from handlers.engines.torch_eager import load_transformer
from handlers.images import pipelines
from handlers.images.pipelines import Pipeline
from handlers.protocol.errors import RequestError
from handlers.settings import ImageSettings, Settings, TextSettings

SAMPLES = Path(__file__).parent / "samples"
CLASSES = {
    "image-classifier": ("image_classifier.py", "ImageClassifier"),
    "text-encoder": ("text_encoder.py", "TextEncoder"),
}


@dataclass(frozen=True)
class Job:
    """One archive to be made.

    torchserve: TorchServe's own keys of model-config.yaml. weights: where they came from, for the provenance.
    notes: what a person should read before trusting the archive.
    """

    name: str
    version: str
    torchserve: Mapping[str, int]
    settings: Settings
    weights: Mapping[str, object]
    parity_data: Path | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)

    kind = ""

    @property
    def entry(self) -> tuple[str, str]:
        """The entry's file name and class."""
        return CLASSES[self.kind]

    @property
    def config(self) -> dict[str, Any]:
        """model-config.yaml's content."""
        return {**self.torchserve, "handler": settings.write(self.settings)}

    @property
    def embeddings(self) -> bool:
        """Whether outputs are compared by cosine, as vectors, not as logits."""
        return False

    @property
    def precisions(self) -> tuple[str, ...]:
        """That the parity gate measures: all that "auto" chooses from, and the one that is asked for."""
        return (
            PRECISIONS if self.settings.precision in ("auto", *PRECISIONS) else (*PRECISIONS, self.settings.precision)
        )

    def stage(self, folder: Path) -> None:
        """Write config.json, model.safetensors and what else the worker reads."""
        raise NotImplementedError

    def samples(self) -> list[bytes]:
        """Request bodies for the parity gate."""
        raise NotImplementedError

    def reference(self, samples: Sequence[bytes]) -> Array:
        """The samples' (N, K) outputs of the checkpoint itself, in fp32 on the CPU."""
        raise NotImplementedError


@dataclass(frozen=True)
class ImageJob(Job):
    """An image classifier or encoder.

    labels: one per class, in order; none for an encoder.
    converter, plan_at: of archive/convert.py.
    """

    settings: ImageSettings
    checkpoint: ImageCheckpoint = None  # type: ignore[assignment]
    labels: Sequence[str] = ()
    converter: str = "onnx"
    plan_at: str = "auto"

    kind = "image-classifier"

    def stage(self, folder: Path) -> None:
        model, chosen = self.checkpoint.network(), self.settings
        model.save_pretrained(folder)
        size = chosen.preprocess.square_size
        if chosen.preprocess.processor:
            image_processors.stage(self.checkpoint.weights.parent, folder)
        if size and convert.wanted(chosen.engine, chosen.precision, chosen.device):
            convert.stage(model, folder, chosen.plan_buckets, size, self.converter, self.plan_at)
        elif self.plan_at == "packaging" or self.converter != "onnx":
            asked = "--plan packaging" if self.plan_at == "packaging" else f"--converter {self.converter}"
            raise convert.ConvertError(
                f"{asked} goes with --engine tensorrt, or auto where the packages tensorrt and onnx are installed "
                "and a GPU is to serve in fp16"
            )
        if self.settings.task == "classification":
            (folder / "labels.json").write_text(json.dumps(list(self.labels), ensure_ascii=False), encoding="utf-8")

    def samples(self) -> list[bytes]:
        if self.parity_data is None:
            return image_processors.samples(self.checkpoint.weights.parent, self.settings.preprocess, photographs())
        found = sorted(self.parity_data.iterdir()) if self.parity_data.is_dir() else []
        files = [path for path in found if path.is_file() and not path.name.startswith(".")]
        if not files:
            raise ValueError(f"{self.parity_data} holds no images for the parity gate; wanted: a folder of images")
        return [self._sample(path) for path in files]

    @property
    def embeddings(self) -> bool:
        return self.settings.task == "embeddings"

    def pipeline(self) -> Pipeline:
        """The archive's way from files to the network's input, on the CPU in fp32."""
        folder, chosen = self.checkpoint.weights.parent, self.settings
        return pipelines.load(folder, chosen.preprocess, chosen.max_pixels, torch.device("cpu"), torch.float32)

    def _sample(self, path: Path) -> bytes:
        """A file's bytes. Raises ValueError, with its name, where it is no image that the model takes."""
        data = path.read_bytes()
        try:
            self.pipeline().prepare(data)
        except RequestError as error:
            raise ValueError(f"--parity-data: {path.name}: {error.message}") from None
        return data

    @torch.inference_mode()
    def reference(self, samples: Sequence[bytes]) -> Array:
        model, chosen = self.checkpoint.network(), self.settings
        pixels = reference_pixels.pixels_of(self.checkpoint, chosen.preprocess, chosen.max_pixels)
        found: Array = torch.cat([outputs(model, pixels(sample)) for sample in samples]).numpy()
        return found


@dataclass(frozen=True)
class TextJob(Job):
    """A text encoder."""

    settings: TextSettings
    checkpoint: TextCheckpoint = None  # type: ignore[assignment]

    kind = "text-encoder"

    @property
    def embeddings(self) -> bool:
        return self.settings.task == "embeddings"

    def stage(self, folder: Path) -> None:
        self.checkpoint.model.save_pretrained(folder)
        self.checkpoint.tokenizer.save_pretrained(folder)
        if self.settings.precision == "fp8":
            fp8.write(self._calibration(folder), folder)

    def _calibration(self, folder: Path) -> list[dict[str, float]]:
        """The largest inputs of the encoder's linear layers for the parity gate's samples, in fp32."""
        network = load_transformer(folder, self.settings.task, dtype=torch.float32).eval()
        texts = [sample.decode() for sample in self.samples()]
        texts = [text.lower() if self.settings.lower_case else text for text in texts]
        ids = self.checkpoint.tokenizer(texts, truncation=True, max_length=self.settings.max_tokens)["input_ids"]
        batches = (TokenBatch.pack([row], [[0] * len(row)], torch.device("cpu")) for row in ids)
        return PackedModel(network, self.settings.task).largest_inputs(batches)

    def samples(self) -> list[bytes]:
        path = self.parity_data or SAMPLES / "texts.txt"
        try:
            lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (UnicodeDecodeError, IsADirectoryError) as error:
            raise ValueError(f"--parity-data {path}: {error}; wanted: a file in UTF-8, one text a line") from None
        if not lines:
            raise ValueError(f"{path} holds no texts for the parity gate; wanted: one text a line")
        if self.settings.task == "fill-mask":
            lines = self._with_masks(lines)
        # Neighbours of similar length keep padding, and so the time of the gate, small.
        return [line.encode() for line in sorted(lines, key=len)]

    def _with_masks(self, lines: list[str]) -> list[str]:
        """Texts with a word masked, less those of which the model's maximum cuts the mask off."""
        tokenizer, most = self.checkpoint.tokenizer, self.settings.max_tokens
        masked = [_masked(line, tokenizer.mask_token) for line in lines]
        ids = tokenizer(masked, truncation=True, max_length=most)["input_ids"]
        kept = [line for line, row in zip(masked, ids, strict=True) if tokenizer.mask_token_id in row]
        if not kept:
            raise ValueError(f"of {len(lines)} texts none has its masked word within the first {most} tokens")
        return kept

    @torch.inference_mode()
    def reference(self, samples: Sequence[bytes]) -> Array:
        """Each text alone and unpadded, through transformers' own tokenizer and model."""
        rows = [self._outputs(sample.decode()) for sample in samples]
        outputs: Array = torch.cat(rows).numpy()
        return outputs

    def _outputs(self, text: str) -> torch.Tensor:
        chosen, tokenizer = self.settings, self.checkpoint.tokenizer
        text = text.lower() if chosen.lower_case else text
        tokens = tokenizer(text, truncation=True, max_length=chosen.max_tokens, return_tensors="pt")
        outputs = self.checkpoint.model(**tokens)
        if chosen.task == "embeddings":
            return _pool_one(outputs.last_hidden_state[0], chosen.pooling).unsqueeze(0)  # (1, hidden)
        logits: torch.Tensor = outputs.logits
        if chosen.task == "sequence-classification":
            return logits  # (1, labels)
        if chosen.task == "token-classification":
            return logits[0]  # (T, labels)
        return logits[0][tokens["input_ids"][0] == tokenizer.mask_token_id]  # (M, vocabulary)


def _pool_one(vectors: torch.Tensor, pooling: settings.Pooling) -> torch.Tensor:
    """(T, hidden) vectors of one text -> its embedding, written apart from handlers.tasks on purpose."""
    weights = torch.arange(1, len(vectors) + 1).unsqueeze(1)  # (T, 1)
    modes = {
        "cls": vectors[0],
        "lasttoken": vectors[-1],
        "mean": vectors.mean(dim=0),
        "max": vectors.max(dim=0).values,
        "mean_sqrt_len_tokens": vectors.sum(dim=0) / len(vectors) ** 0.5,
        "weightedmean": (vectors * weights).sum(dim=0) / weights.sum(),
    }
    embedding = torch.cat([modes[mode] for mode in pooling.modes])
    return embedding / embedding.norm() if pooling.normalize else embedding


def photographs() -> list[bytes]:
    """Sixteen PNG images from two photographs, for networks that know photographs."""
    return [png for name in ("china.jpg", "flower.jpg") for png in _views(SAMPLES / name)]


def _views(path: Path) -> list[bytes]:
    """Eight different images of one photograph: its whole, three windows, and the mirror images of those."""
    with Image.open(path) as photo:
        whole = photo.convert("RGB")
    width, height = whole.size
    side = min(width, height) * 2 // 3
    boxes = [(0, 0, side, side), (width - side, 0, width, side), (0, height - side, side, height)]
    windows = [whole, *(whole.crop(box) for box in boxes)]
    return [_png(view) for window in windows for view in (window, ImageOps.mirror(window))]


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _masked(text: str, mask_token: str) -> str:
    """The text with its middle word masked, or the ninth of a long text, which truncation shall not cut off."""
    words = text.split()
    words[min(len(words) // 2, 8)] = mask_token
    return " ".join(words)
