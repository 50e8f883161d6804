"""A model that is to be packaged: settings, files, samples for the parity gate, and their outputs in fp32.

archive/resolve.py makes these objects, archive/package.py turns them into archives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from archive import reference_embeddings, reference_pixels, sample_images, tensorrt_files
from archive.checkpoints import image_processors
from archive.checkpoints.image_checkpoints import ImageCheckpoint
from archive.checkpoints.text_checkpoints import TextCheckpoint
from archive.inspection import ENTRIES
from archive.parity import PRECISIONS, Array
from handlers import settings, tasks
from handlers.encoder import fp8
from handlers.encoder.packed import PackedModel
from handlers.encoder.packing import TokenBatch
from handlers.engines.image_inputs import outputs
from handlers.engines.text_networks import load_transformer
from handlers.images import pipelines
from handlers.images.pipelines import Pipeline
from handlers.protocol.errors import RequestError
from handlers.settings import ImageSettings, Settings, TextSettings
from handlers.tasks.shared import embedding_head
from handlers.tasks.shared.sparse_pooling import SparsePooling

SAMPLE_TEXTS = Path(__file__).parent / "samples" / "texts.txt"


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model that is to be packaged.

    Attributes:
        name: of the model, and of the archive's file without ".mar".
        version: as TorchServe shows it.
        torchserve: TorchServe's own keys of model-config.yaml.
        settings: the handler's section of model-config.yaml.
        weights: where they came from, for the provenance.
        parity_data: the user's samples for the parity gate; None takes those of archive/samples.
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
        return ENTRIES[self.kind]

    @property
    def config(self) -> dict[str, Any]:
        """model-config.yaml's content."""
        return {**self.torchserve, "handler": settings.write(self.settings)}

    @property
    def gives_embeddings(self) -> bool:
        """Whether outputs are vectors, which the parity gate compares by cosine, instead of logits."""
        return False

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that the parity gate measures: all that "auto" chooses from, and the one asked for."""
        asked = self.settings.precision
        return PRECISIONS if asked in ("auto", *PRECISIONS) else (*PRECISIONS, asked)

    def write_files(self, folder: Path) -> None:
        """Write config.json, model.safetensors and what else the worker reads into `folder`."""
        raise NotImplementedError

    def samples(self) -> list[bytes]:
        """Return request bodies for the parity gate. Raises ValueError if --parity-data holds none."""
        raise NotImplementedError

    def reference_outputs(self, samples: Sequence[bytes]) -> Array:
        """Run the checkpoint itself in fp32 on the CPU.

        Args:
            samples: request bodies, as `samples` returns them.

        Returns:
            (N, K) fp32 logits or embeddings: a row per sample, or per token or mask if the task reads those.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ImageModel(PackagedModel):
    """An image classifier or image encoder that is to be packaged.

    Attributes:
        checkpoint: its network and preprocessing.
        labels: one name per class, in order; none for an encoder.
        converter, build_plan_at: as archive.tensorrt_files.write takes them.
    """

    settings: ImageSettings
    checkpoint: ImageCheckpoint
    labels: Sequence[str] = ()
    converter: str = "onnx"
    build_plan_at: str = "auto"

    kind = "image-classifier"

    @property
    def gives_embeddings(self) -> bool:
        return self.settings.task == "embeddings"

    def write_files(self, folder: Path) -> None:
        network = self.checkpoint.network()
        network.save_pretrained(folder)
        if self.settings.preprocess.processor:
            image_processors.write(self.checkpoint.weights.parent, folder)
        self._write_tensorrt_files(network, folder)
        if self.settings.task == "classification":
            (folder / "labels.json").write_text(json.dumps(list(self.labels), ensure_ascii=False), encoding="utf-8")

    def _write_tensorrt_files(self, network: Any, folder: Path) -> None:
        chosen = self.settings
        size, buckets = chosen.preprocess.square_size, chosen.plan_buckets
        if size and tensorrt_files.are_carried(chosen.engine, chosen.precision, chosen.device):
            tensorrt_files.write(network, folder, buckets, size, self.converter, self.build_plan_at)
        elif self.build_plan_at == "packaging" or self.converter != "onnx":
            asked = "--plan packaging" if self.build_plan_at == "packaging" else f"--converter {self.converter}"
            raise tensorrt_files.ConvertError(
                f"{asked} goes with --engine tensorrt, or with auto if the packages tensorrt and onnx are installed "
                "and a GPU is to serve in fp16"
            )

    def samples(self) -> list[bytes]:
        if self.parity_data is None:
            photographs = sample_images.photographs()
            return image_processors.samples(self.checkpoint.weights.parent, self.settings.preprocess, photographs)
        found = sorted(self.parity_data.iterdir()) if self.parity_data.is_dir() else []
        files = [path for path in found if path.is_file() and not path.name.startswith(".")]
        if not files:
            raise ValueError(f"{self.parity_data} holds no images for the parity gate; wanted: a folder of images")
        return [self._sample(path) for path in files]

    def pipeline(self) -> Pipeline:
        """Return the archive's way from files to the network's input, on the CPU in fp32."""
        folder, chosen = self.checkpoint.weights.parent, self.settings
        return pipelines.load(folder, chosen.preprocess, chosen.max_pixels, torch.device("cpu"), torch.float32)

    def _sample(self, path: Path) -> bytes:
        """Return a file's bytes. Raises ValueError, with its name, if it is no image that the model takes."""
        data = path.read_bytes()
        try:
            self.pipeline().prepare(data)
        except RequestError as error:
            raise ValueError(f"--parity-data: {path.name}: {error.message}") from None
        return data

    @torch.inference_mode()
    def reference_outputs(self, samples: Sequence[bytes]) -> Array:
        network, chosen = self.checkpoint.network(), self.settings
        pixels = reference_pixels.pixels_of(self.checkpoint, chosen.preprocess, chosen.max_pixels)
        found: Array = torch.cat([outputs(network, pixels(sample)) for sample in samples]).numpy()
        return found


@dataclass(frozen=True, kw_only=True)
class TextModel(PackagedModel):
    """A text encoder that is to be packaged. checkpoint: its network and tokenizer."""

    settings: TextSettings
    checkpoint: TextCheckpoint

    kind = "text-encoder"

    @property
    def gives_embeddings(self) -> bool:
        return tasks.head(self.settings.task).gives_vectors

    def write_files(self, folder: Path) -> None:
        self.checkpoint.model.save_pretrained(folder)
        self.checkpoint.tokenizer.save_pretrained(folder)
        if self.gives_embeddings and self.checkpoint.head:
            embedding_head.write(self.checkpoint.head, folder)
        if self.settings.precision == "fp8":
            fp8.write(self._calibration(folder), folder)

    def _calibration(self, folder: Path) -> list[dict[str, float]]:
        """Return the largest inputs of the encoder's linear layers for the parity gate's samples, in fp32."""
        network = load_transformer(folder, self.settings.task, dtype=torch.float32).eval()
        texts = [reference_embeddings.with_prompt(sample.decode(), self.settings) for sample in self.samples()]
        ids = self.checkpoint.tokenizer(texts, truncation=True, max_length=self.settings.max_tokens)["input_ids"]
        batches = (TokenBatch.pack([row], [[0] * len(row)], torch.device("cpu")) for row in ids)
        task = self.settings.task
        return PackedModel(network, task, tasks.head(task).rows).calibrate_fp8(batches)

    def samples(self) -> list[bytes]:
        path = self.parity_data or SAMPLE_TEXTS
        try:
            lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (UnicodeDecodeError, IsADirectoryError) as error:
            raise ValueError(f"--parity-data {path}: {error}; wanted: a file in UTF-8, one text per line") from None
        if not lines:
            raise ValueError(f"{path} holds no texts for the parity gate; wanted: one text per line")
        if tasks.head(self.settings.task).rows == "mask":
            lines = self._with_masks(lines)
        # Neighbours of similar length keep padding, and so the time of the gate, small.
        return [line.encode() for line in sorted(lines, key=len)]

    def _with_masks(self, lines: list[str]) -> list[str]:
        """Return the texts with a word masked, without those whose mask lies beyond the model's maximum."""
        tokenizer, most = self.checkpoint.tokenizer, self.settings.max_tokens
        masked = [_masked(line, tokenizer.mask_token) for line in lines]
        ids = tokenizer(masked, truncation=True, max_length=most)["input_ids"]
        kept = [line for line, row in zip(masked, ids, strict=True) if tokenizer.mask_token_id in row]
        if not kept:
            raise ValueError(f"none of {len(lines)} texts has its masked word within the first {most} tokens")
        return kept

    @torch.inference_mode()
    def reference_outputs(self, samples: Sequence[bytes]) -> Array:
        """Run each text alone and unpadded, through transformers' own tokenizer and model."""
        rows = [self._outputs(sample.decode()) for sample in samples]
        outputs: Array = torch.cat(rows).numpy()
        return outputs

    def _outputs(self, text: str) -> torch.Tensor:
        chosen, tokenizer = self.settings, self.checkpoint.tokenizer
        text = reference_embeddings.with_prompt(text, chosen)
        tokens = tokenizer(text, truncation=True, max_length=chosen.max_tokens, return_tensors="pt")
        outputs = self.checkpoint.model(**tokens)
        if tasks.head(chosen.task).is_embedding:
            vectors = outputs.last_hidden_state[0]  # (T, hidden)
            return reference_embeddings.embedding(vectors, chosen, tokenizer, self.checkpoint.head)
        return self.network_outputs(outputs, tokens["input_ids"][0] == tokenizer.mask_token_id)

    def network_outputs(self, outputs: Any, is_masked: torch.Tensor) -> torch.Tensor:
        """Return what an engine gives for one text: see Head.read, and (1, vocabulary) for sparse embeddings.

        Args:
            outputs: of the checkpoint's model, for a batch of one text.
            is_masked: (T,) bool, which tokens are the tokenizer's mask.
        """
        head = tasks.head(self.settings.task)
        if head.pools_logits:
            return _sparse(outputs.logits[0], self.settings.sparse_pooling).unsqueeze(0)
        return head.read(outputs, is_masked)


def _sparse(logits: torch.Tensor, pooling: SparsePooling) -> torch.Tensor:
    """Return one text's sparse embedding (K,) from its logits (T, K). Shares nothing with handlers, on purpose."""
    weights = torch.log1p(torch.relu(logits))
    if pooling.activation == "log1p_relu":
        weights = torch.log1p(weights)
    return weights.sum(dim=0) if pooling.strategy == "sum" else weights.max(dim=0).values


def _masked(text: str, mask_token: str) -> str:
    """Return the text with one word masked: the middle one, but at most the ninth, so that truncation keeps it."""
    words = text.split()
    words[min(len(words) // 2, 8)] = mask_token
    return " ".join(words)
