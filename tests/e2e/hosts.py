"""Every host of the archives: which requests of tests/hosts_table.py it takes, and how close its answers have to be.

Each is asked one request at a time, so a batch has one request, under TorchServe too. Each test file that starts a
host asks it all that `rows` returns, and compares by `compare`. To add a host, name it in HOSTS.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from server.client import Client
from server.http import request

from handlers import AsyncModel, HttpRequest, Model, async_load, load_archive
from handlers.hosts.messages import routed
from tests.hosts_table import BOUNDARY, MODELS, TABLE, Asked, Reply

LENGTH = "inference-header-content-length"
DTYPES = {"FP32": "<f4", "INT64": "<i8"}
ENGINE = ("engine", "precision", "device")


class Host(Protocol):
    """What serves all models of the table."""

    def ask(self, asked: Asked) -> Reply:
        """Return what a client gets who sends this request."""


class TorchServe:
    def __init__(self, client: Client) -> None:
        self.client = client

    def ask(self, asked: Asked) -> Reply:
        token = {"Authorization": f"Bearer {self.client.token('inference')}"}
        plain = {} if any(name == "Content-Type" for name in asked.headers) else {"Content-Type": ""}
        headers = {**token, **plain, **asked.headers}
        return Reply.of(*request("POST", f"{self.client.inference}{asked.target}", asked.body, headers))


class Runner:
    """`load_archive`, asked from the test's own thread."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.models = models

    def ask(self, asked: Asked) -> Reply:
        answer = self.models[asked.model].answer(sent(asked))
        return Reply.of(answer.status, answer.headers, answer.body)


class AsyncRunner:
    """`async_load`, in an event loop of its own."""

    def __init__(self, models: Mapping[str, AsyncModel], loop: asyncio.AbstractEventLoop) -> None:
        self.models, self.loop = models, loop

    def ask(self, asked: Asked) -> Reply:
        answering = self.models[asked.model].answer(sent(asked))
        answer = asyncio.run_coroutine_threadsafe(answering, self.loop).result(60)
        return Reply.of(answer.status, answer.headers, answer.body)


def sent(asked: Asked) -> HttpRequest:
    """The request as a host gives it to the model."""
    found = routed(asked.target, asked.headers, asked.body)
    assert found is not None
    assert found.model == asked.model
    return found.request


@contextmanager
def runner(store: Path) -> Iterator[Runner]:
    with ExitStack() as stack:
        yield Runner({name: stack.enter_context(load_archive(store / f"{name}.mar")) for name in MODELS})


@contextmanager
def async_runner(store: Path) -> Iterator[AsyncRunner]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(300)

    try:
        with ExitStack() as stack:
            models = {}
            for name in MODELS:
                models[name] = run(async_load(store / f"{name}.mar", max_delay_s=0))
                stack.callback(lambda model: run(model.close()), models[name])
            yield AsyncRunner(models, loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def same_bytes(got: Reply, wanted: Reply) -> None:
    """The host runs the same engine in the same precision with as many threads, and writes the answer itself."""
    assert got == wanted


def same_values(got: Reply, wanted: Reply) -> None:
    """As `same_bytes`, but the host's own server writes the answer: each number is the same float32.

    A shape may have a side of 1 more. Each 4xx but 404 is a 400, with the same message.
    """
    if wanted.status != 200:
        assert got.status == (404 if wanted.status == 404 else 400)
        assert json.loads(got.body) == json.loads(wanted.body)
    else:
        assert got.status == 200, got.body
        assert tensors(got) == tensors(wanted)


@dataclass(frozen=True)
class Kind:
    """A kind of host.

    Args:
        file: the tests that start it.
        compare: fails if an answer is not TorchServe's.
        missing: why it cannot take a request; "" if it can.
    """

    file: str
    compare: Callable[[Reply, Reply], None] = same_bytes
    missing: Callable[[Asked], str] = lambda asked: ""


HOSTS = {
    "runner": Kind("test_hosts_agree.py"),
    "async_runner": Kind("test_hosts_agree.py"),
    "kserve": Kind("test_kserve_host.py"),
    "ray": Kind("test_ray.py"),
    "triton": Kind("test_triton_host.py", same_values, lambda asked: asked.not_on_triton),
}


def rows(name: str) -> list[Asked]:
    """The requests that a host can take."""
    return [asked for asked in TABLE if not HOSTS[name].missing(asked)]


def compare(name: str, host: Host, asked: Asked, torchserve: Mapping[str, Reply]) -> None:
    """Ask a host, and fail if its answer is not TorchServe's."""
    wanted = torchserve[str(asked)]
    assert wanted.status == asked.status, wanted.body
    if is_form(asked) and not importlib.util.find_spec("multipart"):
        pytest.skip("needs the package multipart")
    HOSTS[name].compare(host.ask(asked), wanted)


def is_form(asked: Asked) -> bool:
    return BOUNDARY in asked.headers.get("Content-Type", "")


def engine(described: Mapping[str, Any]) -> dict[str, str]:
    """What bytes depend on in a model's description: engine, precision, and device with its number of threads."""
    return {part: described[part]["name"] for part in ENGINE}


def tensors(reply: Reply) -> dict[str, list[Any]]:
    """Outputs of protocol v2 by name; numbers as float32, which is what the model gave."""
    length = int(reply.headers.get(LENGTH, len(reply.body)))
    found, at = {}, length
    for output in json.loads(reply.body[:length])["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        raw, at = reply.body[at : at + (size or 0)], at + (size or 0)
        found[output["name"]] = _values(output, None if size is None else raw)
    return found


def _values(output: Mapping[str, Any], raw: bytes | None) -> list[Any]:
    """The values of one output. raw: its bytes behind the JSON; None if they are in the JSON."""
    datatype = output["datatype"]
    if datatype == "BYTES":
        return list(output["data"]) if raw is None else list(_elements(raw))
    array = np.array(output["data"], DTYPES[datatype]) if raw is None else np.frombuffer(raw, DTYPES[datatype])
    return list(array.tolist())


def _elements(raw: bytes) -> Iterator[str]:
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        yield raw[4 : 4 + size].decode()
        raw = raw[4 + size :]
