"""What one command asks for, in types. archive/command_line.py builds these objects from the arguments, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class InspectionOptions:
    """`show` and `verify`: look into an archive that is there.

    Attributes:
        command: "show" or "verify".
        mar: the archive's file.
    """

    command: str
    mar: Path


@dataclass(frozen=True, kw_only=True)
class SigningOptions:
    """`keygen`, `sign`, `verify --key` and `verify-store`: keys and signatures.

    Attributes:
        command: "keygen", "sign", "verify" or "verify-store".
        path: the archive's file, the model store's folder, or the new key's files without their suffixes.
        key: the file of the private key ("sign"), or the public key or its file.
        password: whether the new private key has one ("keygen").
    """

    command: str
    path: Path
    key: str = ""
    password: bool = True


@dataclass(frozen=True, kw_only=True)
class PackagingOptions:
    """What every packaging command takes. A preset's values are merged in already.

    None stands for an option that was not given and whose default is decided later, from the checkpoint.

    Attributes:
        command: the command as typed: a kind of model, or a preset.
        weights: folder, file or Hugging Face Hub id of the checkpoint; None for random weights.
        revision: branch, tag or commit of a Hub id.
        name: of the model, and of its file without ".mar".
        model_version: version of the model, as TorchServe shows it.
        export_path: folder that the archive is put into.
        force: package even if nothing has changed.
        sign: the file of a private key that signs the archive; None leaves it unsigned.
        batch_size: requests that are answered together.
        batch_size_given: whether --batch-size set it. If so, it is kept however large the answers are.
        max_batch_delay_ms: how long the first request of a batch waits for others, in milliseconds.
        workers: that are started with the model.
        precision: "auto", "fp32", "fp16", "bf16" or (text encoders) "fp8".
        engine: "auto" or an engine's name.
        device: "auto", "cuda" or "cpu".
        max_inputs: that one request may bring.
        parity_data: samples for the parity gate: a folder of images, or a file of texts.
        architecture: what the preset wants of the checkpoint's configuration; empty without a preset.
        given: every option that decides what is packaged, by name, as it was given and in the command line's order.
            The inputs digest and the provenance are made from it.
    """

    kind: ClassVar[str]  # of the model, as engines name it

    command: str
    weights: str | None
    revision: str | None
    name: str
    model_version: str
    export_path: Path
    force: bool
    sign: Path | None
    batch_size: int
    batch_size_given: bool
    max_batch_delay_ms: int
    workers: int | None
    precision: str
    engine: str
    device: str
    max_inputs: int | None
    parity_data: Path | None
    architecture: Mapping[str, object]
    given: Mapping[str, object]

    @property
    def files(self) -> dict[str, Path]:
        """The local files and folders that options name, by option; the checkpoint is not among them."""
        return _given_files({"--parity-data": self.parity_data})


@dataclass(frozen=True, kw_only=True)
class ImageOptions(PackagingOptions):
    """What the packaging of an image classifier and of an image encoder both take.

    Attributes:
        decoder: of JPEGs: "auto", "gpu" or "cpu".
        size: side of the centre crop, in pixels.
        resize: shorter side before the crop, in pixels.
        resize_mode: "shortest_edge" or "square".
        interpolation: of the resize, by Pillow's names in lower case.
        mean, std: of each RGB channel, for values scaled to 0..1.
        max_pixels: of one image, width x height.
        converter: what makes a TensorRT plan: "onnx" or "torch2trt".
        plan: when the plan is built: "auto", "packaging" or "first-load".
        plan_buckets: batch sizes that it is built for.
        on_mismatch: what a worker does with a plan for another GPU or TensorRT: "rebuild" or "refuse".
    """

    kind: ClassVar[str] = "image-classifier"

    decoder: str | None
    size: int | None
    resize: int | None
    resize_mode: str | None
    interpolation: str | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    max_pixels: int | None
    converter: str
    plan: str
    plan_buckets: tuple[int, ...] | None
    on_mismatch: str | None


@dataclass(frozen=True, kw_only=True)
class ImageClassifierOptions(ImageOptions):
    """Packaging of an image classifier.

    Attributes:
        labels: file of class names.
        top_k: classes in an answer.
    """

    labels: Path | None
    top_k: int | None

    @property
    def files(self) -> dict[str, Path]:
        return {**super().files, **_given_files({"--labels": self.labels})}


@dataclass(frozen=True, kw_only=True)
class ImageEncoderOptions(ImageOptions):
    """Packaging of an image encoder. normalize: scale embeddings to length 1."""

    normalize: bool | None


@dataclass(frozen=True, kw_only=True)
class TextOptions(PackagingOptions):
    """Packaging of a text encoder.

    Attributes:
        task: what it is served for; None is what the checkpoint was made for.
        pooling: modes of an embedding, concatenated in this order.
        normalize: scale embeddings to length 1.
        dimensions: shorter embeddings that the checkpoint was trained for.
        max_tokens: the longest input, special tokens counted.
        truncate: cut longer texts instead of refusing them.
        top_k: labels or fillings in an answer.
        tokenizer: folder of the tokenizer for random weights.
    """

    kind: ClassVar[str] = "text-encoder"

    task: str | None
    pooling: tuple[str, ...] | None
    normalize: bool | None
    dimensions: tuple[int, ...] | None
    max_tokens: int | None
    truncate: bool
    top_k: int | None
    tokenizer: Path | None

    @property
    def files(self) -> dict[str, Path]:
        return {**super().files, **_given_files({"--tokenizer": self.tokenizer})}


def _given_files(by_option: Mapping[str, Path | None]) -> dict[str, Path]:
    return {option: path for option, path in by_option.items() if path is not None}
