"""One real TorchServe for all end-to-end tests, on free ports, with the project's own config.properties."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from demo import demo_text_encoder
from server.client import Client
from server.config import config_on_free_ports
from server.paths import ROOT
from server.process import Server

DIGITS_ARGUMENTS = ("--weights", "archive/digits", "--parity-data", "archive/digits/samples", "--precision", "fp32")


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
def model_store(pytestconfig: pytest.Config) -> Path:
    """The demo archives in fp32, where a batched and a lone answer agree to the last digits."""
    store = pytestconfig.cache.mkdir("model_store")
    package(store, "image-classifier", *DIGITS_ARGUMENTS, "--name", "digits")
    package(store, "image-classifier", *DIGITS_ARGUMENTS, "--name", "digits2", "--model-version", "2.0")
    text = ("--weights", str(demo_text_encoder()), "--precision", "fp32")
    package(store, "text-encoder", *text, "--name", "sentences")
    return store


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
