"""The `handler:` section of an archive's model-config.yaml: written at packaging, checked at load.

Keys are camelCase in the file, as TorchServe's own are. Whoever serves the archive may edit them. A key that is
unknown here, or a value that cannot be taken, is refused at load with the key's name.

docs/settings.md is made from this file: scripts/research/settings_page.py copies the descriptions of the attributes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from handlers import tasks
from handlers.images.preprocess import Preprocess
from handlers.near_names import did_you_mean
from handlers.tasks.shared.pooling import Pooling
from handlers.tasks.shared.sparse_pooling import SparsePooling

ON_MISMATCH = ("rebuild", "refuse")
DECODERS = ("auto", "gpu", "cpu")
IMAGE_PRECISIONS = ("auto", "fp32", "fp16", "bf16")
PRECISIONS = (*IMAGE_PRECISIONS, "fp8")
DEVICES = ("auto", "cuda", "cpu")
IMAGE_TASKS = ("classification", "embeddings")
TEXT_TASKS = tasks.names()
TASKS_WITHOUT_PROMPTS = ("token-classification", "fill-mask")  # their answers point into the client's own text

T = TypeVar("T")


class SettingsError(ValueError):
    """model-config.yaml has a setting that this handler cannot serve."""


@dataclass(frozen=True)
class Settings:
    """Settings of both handlers.

    Attributes:
        engine: What runs the network: "cudnn", "tensorrt", "torch_eager", "fused" or "onnxruntime". "auto" takes the
            best engine that can run the model on this machine. An engine that is named here is the only one tried.
        precision: "fp32", "fp16", "bf16", "fp8" or "auto". On a GPU "auto" takes fp16 if fp16 passed the parity gate
            when the archive was packaged, else fp32. On a CPU with native bf16 it takes the faster of bf16 and fp32
            if bf16 passed the gate. On any other CPU it takes fp32. "fp8" is never chosen by "auto". It needs a text
            encoder, and a Hopper GPU or newer; a CPU emulates it slowly.
        device: "cuda", "cpu" or "auto". "auto" takes the GPU that TorchServe assigned to the worker. Without such a
            GPU it takes the CPU.
        cpu_threads: PyTorch's CPU threads per worker. 0 takes the number in OMP_NUM_THREADS. If that is not set, a
            worker on a GPU gets one thread, because idle threads would spin. A worker on a CPU gets its share of the
            container's CPUs, which are divided by maxWorkers.
        max_inputs: The largest number of inputs (images or texts) in one request.
        hang_timeout: The seconds that one batch may take in the network, or in the GPU's JPEG engines. After that the
            worker writes where its threads are, and ends: its requests get a 500 at once, and TorchServe starts
            another worker. -1 is half of TorchServe's responseTimeout on a GPU (60 s, if that is not set). On a CPU
            -1 is no limit, because a large batch may rightly take long there. 0 is no limit.

    Raises:
        ValueError: A value is outside its range.
    """

    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    cpu_threads: int = 0
    max_inputs: int = 64
    hang_timeout: int = -1

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("device", self.device, DEVICES)
        _at_least("cpuThreads", self.cpu_threads, 0)
        _at_least("maxInputs", self.max_inputs, 1)
        _at_least("hangTimeout", self.hang_timeout, -1)


@dataclass(frozen=True)
class ImageSettings(Settings):
    """Settings of an image classifier or an image encoder.

    Attributes:
        task: "classification", or "embeddings" for an image encoder.
        normalize: Scale each embedding of an image encoder to length 1. A request may ask for the opposite.
        preprocess: How an image becomes the network's input: the keys below.
        top_k: The number of classes in an answer. A request may ask for another number. Embeddings do not use it.
        max_pixels: The largest image, as width x height. It is checked before the image is decoded. The images of one
            request may have four times as many pixels together.
        micro_batch: The largest number of images in one run of the network. Larger batches are cut. For ResNet-101
            on an H200 256 is about a tenth faster than 64, but each worker takes more GPU memory. On a GPU the limit
            is 256, or less if the memory was short at load, when every size that can come is run once.
        decoder: What decodes JPEGs. "gpu" is the GPU's JPEG engines, through nvImageCodec. "cpu" is Pillow. "auto"
            takes the GPU if it has such engines, nvImageCodec is installed, and both decoders give the same pixels.
        decode_threads: The number of threads that decode images. 0 is one thread per CPU of the worker's share, at
            most 8.
        plan_buckets: The batch sizes that a TensorRT plan is built for, ascending, 1 to 256. Batches larger than the
            last one are cut.
        on_mismatch: What happens if a TensorRT plan was built for another GPU or another release of TensorRT.
            "rebuild" builds a new plan at the first load, which takes minutes. "refuse" does not load the model. With
            the engine "auto" no plan is built, and another engine serves.
        plan_cache: The folder for what a worker makes once and finds again: TensorRT plans built at load, the
            measured times of engines, and the results of the comparison with fp32. "" is
            $XDG_CACHE_HOME/torchserve-fast-handlers/plans, or ~/.cache/torchserve-fast-handlers/plans if that
            variable is not set. If neither can be written to, a folder of this user's own under /tmp is used. Text
            encoders have no such key; they use that default folder.

    Raises:
        ValueError: A value is outside its range.
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
    """Settings of a text encoder.

    Attributes:
        task: "embeddings", "sparse-embeddings", "sequence-classification", "token-classification" or "fill-mask".
        max_tokens: The longest input in tokens, special tokens counted.
        truncate: Cut longer inputs to `maxTokens`. If false, they get a 400. A request may ask for the opposite.
        pooling: How token vectors become an embedding: the keys below. Only embeddings use it.
        sparse_pooling: How token logits become a sparse embedding: the keys below. Only sparse-embeddings use it.
        dimensions: Shorter embeddings that the checkpoint was trained for (Matryoshka), as numbers of an embedding. A
            request may ask for one of them. Without such a training a shorter embedding would be worth little, so
            any other number is refused.
        truncate_dim: The numbers of an embedding, unless a request asks for other `dimensions`. 0 is all. Numbers are
            cut off after the checkpoint's own normalisation, as sentence-transformers does it.
        prompts: Texts by name, each of which can stand before a client's text: the name `query` may have the text
            `search_query: `. A request chooses one with `prompt_name`. Only embeddings and sequence-classification
            use them.
        default_prompt_name: The prompt for requests that name none. "" is no prompt.
        lower_case: Lower the text before it is tokenized, as some sentence-transformers checkpoints ask.
        top_k: The number of labels, or of fillings of a mask, in an answer. 0 is all labels, or five
            fillings. A request may ask for another number.
        max_chars: The longest text in characters. It is checked before the text is tokenized.
        max_chars_together: The most characters of all texts in one request, if it has several texts. One CPU core
            tokenizes a million characters of prose in 0.5 to 1 s. Scripts or words that are cut into single
            characters take up to 4 s.
        token_budget: The largest number of tokens in one run of the network. Padding counts if the engine pads.
            Larger batches are cut. 0 takes the budget that the engine runs fastest with.

    Raises:
        ValueError: A value is outside its range.
    """

    task: str = "embeddings"
    max_tokens: int = 512
    truncate: bool = False
    pooling: Pooling = field(default_factory=Pooling)
    sparse_pooling: SparsePooling = field(default_factory=SparsePooling)
    dimensions: tuple[int, ...] = ()
    truncate_dim: int = 0
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str = ""
    lower_case: bool = False
    top_k: int = 5
    max_chars: int = 100_000
    max_chars_together: int = 500_000
    token_budget: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("task", self.task, TEXT_TASKS)
        _at_least("maxTokens", self.max_tokens, 3)
        if any(length < 1 for length in self.dimensions):
            raise ValueError(f"dimensions is {list(self.dimensions)}; wanted: 1 or more each")
        _at_least("truncateDim", self.truncate_dim, 0)
        _prompts(self.prompts, self.default_prompt_name, self.task)
        _at_least("topK", self.top_k, 0)
        _at_least("maxChars", self.max_chars, 1)
        _at_least("maxCharsTogether", self.max_chars_together, 1)
        if self.token_budget != 0:
            _at_least("tokenBudget", self.token_budget, self.max_tokens)


def read(kind: type[T], section: object, where: str = "handler") -> T:
    """Return a settings object of type `kind` from its YAML section.

    Args:
        kind: The dataclass to build.
        section: The parsed YAML, a mapping with camelCase keys.
        where: The section's name in error messages.

    Raises:
        SettingsError: A key is unknown, or a value has a wrong type or is outside its range.
    """
    if not isinstance(section, Mapping):
        raise SettingsError(f"model-config.yaml: {where} is {type(section).__name__}; wanted: a mapping of settings")
    types = get_type_hints(kind)
    known = {_camel(item.name): item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in section if key not in known)
    if unknown:
        near = did_you_mean(unknown, known)
        raise SettingsError(
            f"model-config.yaml: {where}: unknown {', '.join(unknown)}{near}; known: {', '.join(known)}"
        )
    values = {known[key]: _value(types[known[key]], value, f"{where}.{key}") for key, value in section.items()}
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"model-config.yaml: {where}: {error}") from None


def write(settings: object) -> dict[str, Any]:
    """Return the YAML section of a settings object, with camelCase keys. `read` is the inverse."""
    section = {}
    for item in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, item.name)
        if dataclasses.is_dataclass(value):
            value = write(value)
        if isinstance(value, Mapping):
            value = dict(value)
        section[_camel(item.name)] = list(value) if isinstance(value, tuple) else value
    return section


def _value(wanted: Any, value: object, where: str) -> object:
    if dataclasses.is_dataclass(wanted):
        return read(wanted, value, where)  # type: ignore[arg-type]
    if wanted in (int, bool, str):
        if type(value) is not wanted:
            raise SettingsError(f"model-config.yaml: {where} is {value!r}; wanted: {wanted.__name__}")
        return value
    if get_origin(wanted) is Mapping:
        return _texts_by_name(value, where)
    of, *_ = get_args(wanted)
    fitting = (int, float) if of is float else (of,)
    if not isinstance(value, list) or any(type(item) not in fitting for item in value):
        raise SettingsError(f"model-config.yaml: {where} is {value!r}; wanted: a list of {of.__name__}")
    return tuple(value)


def _texts_by_name(value: object, where: str) -> dict[str, str]:
    if isinstance(value, Mapping) and all(isinstance(item, str) for pair in value.items() for item in pair):
        return dict(value)
    raise SettingsError(f"model-config.yaml: {where} is {value!r}; wanted: a mapping of names to texts")


def _camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{key} is {value!r}; wanted: {', '.join(known)}")


def _prompts(prompts: Mapping[str, str], default: str, task: str) -> None:
    if "" in prompts:
        raise ValueError("prompts has an empty name; wanted: a name of one or more characters")
    if default and default not in prompts:
        raise ValueError(f"defaultPromptName is {default!r}; wanted: one of {', '.join(prompts) or 'no prompts'}")
    if prompts and task in TASKS_WITHOUT_PROMPTS:
        raise ValueError(f"prompts are for embeddings and sequence-classification, and the task is {task}")


def _at_least(key: str, value: int, low: int) -> None:
    if value < low:
        raise ValueError(f"{key} is {value}; wanted: {low} or more")
