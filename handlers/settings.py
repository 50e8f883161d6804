"""The `handler:` section of an archive's model-config.yaml: written at packaging, checked at load.

Keys are camelCase there, as TorchServe's own are, and may be edited by whoever serves the archive. What this
file does not know or cannot take is refused at load with the key's name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar, get_args, get_type_hints

from handlers.images.preprocess import Preprocess

ON_MISMATCH = ("rebuild", "refuse")
DECODERS = ("auto", "gpu", "cpu")
IMAGE_PRECISIONS = ("auto", "fp32", "fp16", "bf16")
PRECISIONS = (*IMAGE_PRECISIONS, "fp8")
DEVICES = ("auto", "cuda", "cpu")
IMAGE_TASKS = ("classification", "embeddings")
TEXT_TASKS = ("embeddings", "sequence-classification", "token-classification", "fill-mask")
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

T = TypeVar("T")


class SettingsError(ValueError):
    """model-config.yaml holds what this handler cannot serve."""


@dataclass(frozen=True)
class Pooling:
    """From token vectors to one embedding, in the words of sentence-transformers' pooling config.

    modes: concatenated in this order.
    normalize: scale each embedding to length 1.
    """

    modes: tuple[str, ...] = ("mean",)
    normalize: bool = False

    def __post_init__(self) -> None:
        unknown = [mode for mode in self.modes if mode not in POOLINGS]
        if unknown or not self.modes:
            raise ValueError(f"modes {list(self.modes)}; wanted: one or more of {', '.join(POOLINGS)}")


@dataclass(frozen=True)
class Settings:
    """What both handlers share.

    engine: a module of handlers.engines, or "auto" for the best one that can run here.
    precision: "auto" is fp16 on a GPU where the archive's parity figures allow it, else fp32; on a CPU that has bf16
        natively, if the figures allow it, the faster of bf16 and fp32, else fp32. "fp8" (of text encoders, from
        Hopper on) has to be asked for.
    device: "auto" is the GPU that TorchServe assigned, or the CPU where it has none.
    cpu_threads: of PyTorch on the CPU. 0 is what OMP_NUM_THREADS says; without it one for a worker on a GPU, whose
        other threads would only spin, and else the worker's share of the CPUs that the container may use (maxWorkers
        share them).
    max_inputs: that one request may bring.
    """

    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    cpu_threads: int = 0
    max_inputs: int = 64

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("device", self.device, DEVICES)
        _at_least("cpuThreads", self.cpu_threads, 0)
        _at_least("maxInputs", self.max_inputs, 1)


@dataclass(frozen=True)
class ImageSettings(Settings):
    """Of ImageClassifier.

    task: one of IMAGE_TASKS.
    normalize: of embeddings: scale them to length 1 unless the request says otherwise.
    preprocess: see handlers.images.preprocess.
    top_k: classes in an answer unless the request asks for another number.
    max_pixels: of one image, width x height, asked before it is decoded; a request's images may have four times as
        many together.
    micro_batch: images that go through the network at once; larger batches are cut. 256 is a tenth faster than 64 for
        ResNet-101 and takes about 1 GB more of a GPU's memory per worker. On a GPU no more than 256 go, nor more than
        memory sufficed for at load, where all sizes that can come are run once.
    decoder: "gpu" decodes JPEGs by the GPU's JPEG engines, "cpu" by Pillow. "auto" is the GPU if it has such engines,
        nvImageCodec is installed, and both give the same pixels.
    decode_threads: that decode images beside each other; 0 is one per CPU of the worker's share, at most 8.
    plan_buckets: batch sizes that a TensorRT plan is built for, ascending; larger batches are cut to the largest.
    on_mismatch: "rebuild" a plan that was built for another GPU or TensorRT (minutes, once), or "refuse" to load.
    plan_cache: folder of the plans that are built at load, and of engines' times; "" is
        ~/.cache/torchserve-fast-handlers/plans, see handlers.caches.
    """

    task: str = "classification"
    normalize: bool = False
    preprocess: Preprocess = field(default_factory=lambda: Preprocess(size=224, resize=256))
    top_k: int = 5
    max_pixels: int = 50_000_000
    micro_batch: int = 64
    decoder: str = "auto"
    decode_threads: int = 0
    plan_buckets: tuple[int, ...] = (1, 8, 64)
    on_mismatch: str = "rebuild"
    plan_cache: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("task", self.task, IMAGE_TASKS)
        _one_of("precision", self.precision, IMAGE_PRECISIONS)
        for name in ("top_k", "max_pixels", "micro_batch"):
            _at_least(_camel(name), getattr(self, name), 1)
        _at_least("decodeThreads", self.decode_threads, 0)
        _one_of("decoder", self.decoder, DECODERS)
        _one_of("onMismatch", self.on_mismatch, ON_MISMATCH)
        ascending = all(a < b for a, b in pairwise((0, *self.plan_buckets)))
        if not self.plan_buckets or not ascending or self.plan_buckets[-1] > 256:
            raise ValueError(f"planBuckets is {list(self.plan_buckets)}; wanted: ascending batch sizes, 1 to 256")


@dataclass(frozen=True)
class TextSettings(Settings):
    """Of TextEncoder.

    task: one of TEXT_TASKS.
    max_tokens: the model's maximum, special tokens counted.
    truncate: cut longer inputs to max_tokens unless the request says otherwise; else they get a 400.
    pooling: of the embeddings task.
    lower_case: lower the text before the tokenizer sees it, as some sentence-transformers checkpoints ask.
    top_k: labels (or fillings of a mask) in an answer; 0 is all labels.
    max_chars: of one text, asked before it is tokenized.
    max_chars_together: of a request's texts, if it brings several. One core takes 0.5 to 1 s for a million characters
        of prose, and up to 4 s for scripts or words that are cut into single characters.
    token_budget: tokens that go through the network at once, padding counted where the engine pads; larger batches
        are cut. 0 is what the engine runs fastest.
    """

    task: str = "embeddings"
    max_tokens: int = 512
    truncate: bool = False
    pooling: Pooling = field(default_factory=Pooling)
    lower_case: bool = False
    top_k: int = 5
    max_chars: int = 100_000
    max_chars_together: int = 500_000
    token_budget: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("task", self.task, TEXT_TASKS)
        _at_least("maxTokens", self.max_tokens, 3)
        _at_least("topK", self.top_k, 0)
        _at_least("maxChars", self.max_chars, 1)
        _at_least("maxCharsTogether", self.max_chars_together, 1)
        if self.token_budget != 0:
            _at_least("tokenBudget", self.token_budget, self.max_tokens)


def read(kind: type[T], section: object, where: str = "handler") -> T:
    """A settings object from the YAML section; unknown keys, wrong types and values raise SettingsError."""
    if not isinstance(section, Mapping):
        raise SettingsError(f"model-config.yaml: {where} is {type(section).__name__}; wanted: a mapping of settings")
    types = get_type_hints(kind)
    known = {_camel(item.name): item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in section if key not in known)
    if unknown:
        raise SettingsError(f"model-config.yaml: {where}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    values = {known[key]: _value(types[known[key]], value, f"{where}.{key}") for key, value in section.items()}
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"model-config.yaml: {where}: {error}") from None


def write(settings: object) -> dict[str, Any]:
    """The YAML section for a settings object; `read` is its inverse."""
    section = {}
    for item in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, item.name)
        if dataclasses.is_dataclass(value):
            value = write(value)
        section[_camel(item.name)] = list(value) if isinstance(value, tuple) else value
    return section


def _value(wanted: Any, value: object, where: str) -> object:
    if dataclasses.is_dataclass(wanted):
        return read(wanted, value, where)  # type: ignore[arg-type]
    if wanted in (int, bool, str):
        if type(value) is not wanted:
            raise SettingsError(f"model-config.yaml: {where} is {value!r}; wanted: {wanted.__name__}")
        return value
    of, *_ = get_args(wanted)
    fitting = (int, float) if of is float else (of,)
    if not isinstance(value, list) or any(type(item) not in fitting for item in value):
        raise SettingsError(f"model-config.yaml: {where} is {value!r}; wanted: a list of {of.__name__}")
    return tuple(value)


def _camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{key} is {value!r}; wanted: {', '.join(known)}")


def _at_least(key: str, value: int, low: int) -> None:
    if value < low:
        raise ValueError(f"{key} is {value}; wanted: {low} or more")
