"""The runner and the async runner answer tests/hosts_table.py with TorchServe's very bytes.

The other hosts of tests/e2e/hosts.py are asked the same in the files that start them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from server.client import Client

from handlers import load_archive
from tests.e2e import hosts
from tests.e2e.hosts import AsyncRunner, Runner
from tests.hosts_table import TABLE, Asked, Reply

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def runner(torchserve: object, model_store: Path) -> Iterator[Runner]:
    with hosts.runner(model_store) as found:
        yield found


@pytest.fixture(scope="module")
def async_runner(torchserve: object, model_store: Path) -> Iterator[AsyncRunner]:
    with hosts.async_runner(model_store) as found:
        yield found


@pytest.mark.parametrize("model", ["digits", "sentences"])
def test_the_engine_is_torchserves(model: str, runner: Runner, client: Client) -> None:
    assert hosts.engine(runner.models[model].describe()) == hosts.engine(client.customized(model))


@pytest.mark.parametrize("asked", hosts.rows("runner"), ids=str)
def test_the_runners_answer_is_torchserves(asked: Asked, runner: Runner, torchserve: Mapping[str, Reply]) -> None:
    hosts.compare("runner", runner, asked, torchserve)


@pytest.mark.parametrize("asked", hosts.rows("async_runner"), ids=str)
def test_the_async_runners_answer_is_torchserves(
    asked: Asked, async_runner: AsyncRunner, torchserve: Mapping[str, Reply]
) -> None:
    hosts.compare("async_runner", async_runner, asked, torchserve)


def test_one_batch_of_good_and_bad_requests(torchserve: Mapping[str, Reply], model_store: Path) -> None:
    """The table in one batch per model: the errors are the same, and numbers differ by rounding alone."""
    with contextlib.closing(load_archive(model_store / "sentences.mar")) as model:
        together = [asked for asked in TABLE if asked.model == "sentences" and not hosts.is_form(asked)]
        for asked, answer in zip(
            together, model.answer_batch([hosts.sent(asked) for asked in together]), strict=True
        ):
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
