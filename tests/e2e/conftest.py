"""One real TorchServe for all end-to-end tests, on free ports, with the project's own config.properties."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from demo import demo_text_encoder
from server.client import Client
from server.config import config_on_free_ports
from server.paths import ROOT
from server.process import Server

from archive.__main__ import main
from tests.e2e import hosts
from tests.hosts_table import TABLE, Reply
from tests.warm_trials import warm_trials


def package(store: Path, command: str, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "archive", command, *arguments, "--export-path", str(store)], cwd=ROOT, check=True
    )


@pytest.fixture(scope="session")
def packager() -> Callable[..., None]:
    """packager(store, command, *options): scripts/package, into that folder."""
    return package


@pytest.fixture(scope="session")
def config_maker() -> Callable[[Path], Path]:
    """config_maker(path): a config.properties for one more server, written there."""
    return config_on_free_ports


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The archives of tests/hosts_table.py in fp32, where a batched and a lone answer agree to the last digits.

    Each process of pytest-xdist has a copy, because tests add archives to it.
    """
    shared = pytestconfig.cache.mkdir("model_store")
    with (shared / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        package_models(shared, tmp_path_factory.mktemp("checkpoints") / "reranker")
    store = tmp_path_factory.mktemp("model_store")
    for path in shared.glob("*.mar"):
        shutil.copy(path, store)
    return store


def package_models(store: Path, cross_encoder_folder: Path) -> None:
    """Package the models that are not up to date; in this process, which is quicker."""
    cross_encoder(cross_encoder_folder)
    digits = ROOT / "archive" / "digits"
    image = ("image-classifier", "--weights", digits, "--parity-data", digits / "samples")
    text = ("text-encoder", "--weights")
    wanted = (
        (*image, "--name", "digits"),
        (*image, "--name", "digits2", "--model-version", "2.0"),
        (*text, demo_text_encoder(), "--name", "sentences"),
        (*text, cross_encoder_folder, "--name", "reranker"),
    )
    with warm_trials():
        for arguments in wanted:
            assert main([*map(str, arguments), "--precision", "fp32", "--export-path", str(store)]) == 0


@pytest.fixture(scope="session")
def server(model_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    config = config_on_free_ports(folder / "config.properties")
    running = Server(folder, config, model_store, ["digits=digits.mar", "sentences=sentences.mar"])
    running.start()
    try:
        asks = {"digits": _answers("digits"), "sentences": _answers("sentences")}
        running.wait(asks, timeout_s=180, report=print)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def reranker(server: Server) -> Iterator[None]:
    """One more model on the server, "reranker"."""
    with reranker_served(server):
        yield


@pytest.fixture(scope="session")
def torchserve(server: Server) -> Mapping[str, Reply]:
    """TorchServe's answers to the whole table of requests."""
    host = hosts.TorchServe(server.client)
    with reranker_served(server):
        return {str(asked): host.ask(asked) for asked in TABLE}


@contextmanager
def reranker_served(server: Server) -> Iterator[None]:
    """Serve the small cross-encoder with random weights, until the end."""
    query = {"url": "reranker.mar", "model_name": "reranker", "initial_workers": 1, "synchronous": "true"}
    answer = server.client.manage("POST", "/models", query)
    assert answer.status == 200, answer.body
    try:
        yield
    finally:
        server.client.manage("DELETE", "/models/reranker")


def cross_encoder(folder: Path) -> None:
    """Write a checkpoint with one label, one layer, and the demo encoder's tokenizer; its scores differ by text."""
    import transformers

    torch.manual_seed(0)
    tiny: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = transformers.BertConfig(**tiny, id2label={0: "LABEL_0"}, initializer_range=0.5)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_text_encoder() / name, folder / name)


@pytest.fixture
def other_config(tmp_path: Path) -> Path:
    """A config.properties for a further server."""
    return config_on_free_ports(tmp_path / "config.properties")


@pytest.fixture(scope="session")
def client(server: Server) -> Client:
    return server.client


def _answers(model: str) -> Callable[[Client], bool]:
    # An empty request is refused by the handler itself: whoever refuses it has loaded.
    return lambda client: client.predict(model, b"").json().get("type") == "EmptyRequest"
