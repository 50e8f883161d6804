"""What a worker does at its start: the weights' digest beside the imports, and its phases in the log."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import handlers
from handlers import digests
from handlers.image_classifier import ImageClassifier
from handlers.text_encoder import TextEncoder
from handlers.unpacked_files import ChangedFilesError

SECTION = {"precision": "fp32", "device": "cpu", "cpuThreads": 1, "engine": "fused"}


@pytest.mark.parametrize("entry", ["text_encoder.py", "image_classifier.py"])
def test_the_weights_beside_an_entry_are_read_when_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    """TorchServe imports the entry from the unpacked archive."""
    shutil.copy(Path(handlers.__file__).parent / entry, tmp_path)
    started: list[Path] = []
    monkeypatch.setattr(digests, "start", started.append)
    spec = importlib.util.spec_from_file_location(f"entry_{uuid.uuid4().hex}", tmp_path / entry)
    assert spec
    assert spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert started == [tmp_path / "model.safetensors"]


def test_a_text_worker_logs_its_phases_and_describes_them(
    minilm_folder: Path, context_for: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    handler = TextEncoder()
    with caplog.at_level(logging.INFO):
        handler.initialize(context_for((), minilm_folder, {"handler": SECTION}))
    handler.close()
    start = handler.model.description["start"]
    assert {"ready", "device", "files", "engine", "weights", "first run", "other"} <= start.keys()
    assert start["ready"] == pytest.approx(sum(start.values()) - start["ready"], abs=0.1)
    (said,) = [line for line in caplog.messages if "ready after" in line]
    assert said.startswith(f"fake: ready after {start['ready']:.1f} s: ")
    assert f"weights {start['weights']:.1f}" in said
    json.dumps(handler.model.description)


def test_an_image_worker_logs_its_phases(
    digits_folder: Path, context_for: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    handler = ImageClassifier()
    section = {**SECTION, "engine": "torch_eager", "preprocess": {"size": 32, "resize": 32}}
    with caplog.at_level(logging.INFO):
        handler.initialize(context_for((), digits_folder, {"handler": section}))
    handler.close()
    assert {"weights", "first run"} <= handler.model.description["start"].keys()
    assert sum("ready after" in line for line in caplog.messages) == 1


@pytest.mark.parametrize(("most", "answered"), [(1_000_000, [1]), (1000, [])], ids=["usual", "tiny pictures alone"])
def test_an_image_worker_answers_a_jpeg_before_its_first_request(
    digits_folder: Path,
    context_for: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    answered: list[int],
) -> None:
    """So that no client waits for what decoding and answering do once. A picture that it refuses ends nothing."""
    seen: list[int] = []
    predict = ImageClassifier.predict

    def counted(self: ImageClassifier, inputs: Sequence[Any]) -> list[object]:
        seen.append(len(inputs))
        return predict(self, inputs)

    monkeypatch.setattr(ImageClassifier, "predict", counted)
    handler = ImageClassifier()
    section = {**SECTION, "engine": "torch_eager", "maxPixels": most, "preprocess": {"size": 32, "resize": 32}}
    handler.initialize(context_for((), digits_folder, {"handler": section}))
    handler.close()
    assert seen == answered


def test_a_network_that_fails_on_that_jpeg_serves(
    digits_folder: Path,
    context_for: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("pictures of 32 x 32 pixels alone")

    monkeypatch.setattr(ImageClassifier, "predict", fails)
    handler = ImageClassifier()
    section = {**SECTION, "engine": "torch_eager", "preprocess": {"size": 32, "resize": 32}}
    with caplog.at_level(logging.INFO):
        handler.initialize(context_for((), digits_folder, {"handler": section}))
    handler.close()
    assert "a picture of 500 x 375 was not answered: RuntimeError" in caplog.messages


def test_torn_weights_are_refused_by_name_although_a_thread_has_read_them(
    minilm_folder: Path, tmp_path: Path, context_for: Callable[..., Any]
) -> None:
    """Before an engine reads them."""
    folder = shutil.copytree(minilm_folder, tmp_path / "torn")
    listed = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / "provenance.json").write_text(json.dumps({"files": listed}), encoding="utf-8")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    digests.start(weights)
    with pytest.raises(ChangedFilesError, match=r"changed: model\.safetensors"):
        TextEncoder().initialize(context_for((), folder, {"handler": SECTION}))
