"""Every host answers tests/hosts_table.py with TorchServe's very bytes.

To add a host, write a context manager that serves the archives of a folder and yields a `Host`, and name it in HOSTS.
TorchServe is asked one request at a time, so its batches have one request, as those of the other hosts here.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from server.client import Client
from server.http import request

from handlers import AsyncModel, HttpRequest, Model, async_load, load_archive
from handlers.hosts.messages import routed
from tests.e2e.kserve_server import kserve
from tests.hosts_table import BOUNDARY, MODELS, TABLE, Asked, Reply

pytestmark = pytest.mark.e2e


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


HOSTS: dict[str, Callable[[Path], AbstractContextManager[Host]]] = {
    "runner": runner,
    "async_runner": async_runner,
    "kserve": kserve,
}


@pytest.fixture(scope="module")
def torchserve(client: Client, reranker: None) -> dict[str, Reply]:
    """TorchServe's answers to the whole table."""
    host = TorchServe(client)
    return {str(asked): host.ask(asked) for asked in TABLE}


@pytest.fixture(scope="module", params=HOSTS)
def host(request: pytest.FixtureRequest, torchserve: object, model_store: Path) -> Iterator[Host]:
    with HOSTS[request.param](model_store) as found:
        yield found


def is_form(asked: Asked) -> bool:
    return BOUNDARY in asked.headers.get("Content-Type", "")


@pytest.mark.parametrize("asked", TABLE, ids=str)
def test_the_answer_is_torchserves(asked: Asked, host: Host, torchserve: Mapping[str, Reply]) -> None:
    wanted = torchserve[str(asked)]
    assert wanted.status == asked.status, wanted.body
    if is_form(asked) and not importlib.util.find_spec("multipart"):
        pytest.skip("needs the package multipart")
    assert host.ask(asked) == wanted


def test_one_batch_of_good_and_bad_requests(torchserve: Mapping[str, Reply], model_store: Path) -> None:
    """The table in one batch per model: the errors are the same, and numbers differ by rounding alone."""
    with contextlib.closing(load_archive(model_store / "sentences.mar")) as model:
        together = [asked for asked in TABLE if asked.model == "sentences" and not is_form(asked)]
        for asked, answer in zip(together, model.answer_batch([sent(asked) for asked in together]), strict=True):
            wanted = torchserve[str(asked)]
            assert answer.status == wanted.status, asked
            if answer.status != 200 or not numbers(wanted):
                assert answer.body == wanted.body
            else:
                np.testing.assert_allclose(
                    numbers(Reply.of(200, answer.headers, answer.body)), numbers(wanted), atol=1e-5
                )


def numbers(reply: Reply) -> list[float]:
    """All numbers with a point in an answer of JSON, in order."""
    if reply.headers.get("content-type") != "application/json":
        return []
    found: list[float] = []

    def walk(value: object) -> None:
        if isinstance(value, float):
            found.append(value)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(item)

    walk(json.loads(reply.body))
    return found
