"""SIGTERM to scripts/deployment/start: new requests get 503, those in work are answered, and the end has a bound."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server.client import Client
from serving_bench.archives import make
from soak import known, questions
from soak.traffic import Connection

from tests.e2e.programs import listens, read_properties
from tests.e2e.test_container import Container

pytestmark = pytest.mark.e2e

CLIENTS, STOP_S = 12, 40
SLOW = """
import time

class Slow:
    def initialize(self, context):
        pass

    def handle(self, rows, context):
        if any(bytes(row.get("body") or b"") == b"sleep" for row in rows):
            time.sleep(100)
        return [b"awake" for row in rows]
"""
Start = Callable[..., Container]


@pytest.fixture
def start(tmp_path: Path, config_maker: Callable[[Path], Path]) -> Iterator[Start]:
    """start(store, stop_s): scripts/deployment/start in a folder of its own."""
    config, started = config_maker(tmp_path / "config.properties"), list[Container]()
    metrics = read_properties(config)["metrics_address"]

    def make_one(store: Path, stop_s: float) -> Container:
        environment = {
            **{key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TMPDIR")},
            "RUN_FOLDER": str(tmp_path / "run"),
            "MODEL_STORE": str(store),
            "TS_CONFIG": str(config),
            "JAVA_HEAP": "600m",
            "STOP_SECONDS": str(stop_s),
            "METRICS_ADDRESS": metrics,
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        started.append(Container(tmp_path, environment))
        started[-1].start()
        return started[-1]

    yield make_one
    for container in started:
        if container.process is not None and container.process.poll() is None:
            container.kill(signal.SIGKILL)


def test_no_request_is_lost(start: Start, model_store: Path) -> None:
    container = start(model_store, STOP_S)
    client = container.client
    client.scale("digits", 2)
    files, token = questions.pictures(12), client.token("inference")
    form = questions.ImageForms(files).all()[0]
    connection = Connection(client.inference, token)
    answers = known.ask_all([form], len(files), {}, connection.ask)
    connection.close()
    outcomes, begun = list[str](), threading.Event()

    def ask_until_refused(seed: int) -> None:
        chance, kept = random.Random(seed), Connection(client.inference, token)
        while True:
            index = chance.randrange(len(files))
            try:
                answer = kept.ask(form.write([index]))
            except (OSError, http.client.HTTPException) as error:
                outcomes.append(type(error).__name__)
                break
            right = answer.status == 200 and answers.problem(form, [index], answer.body) is None
            outcomes.append("right" if right else str(answer.status))
            begun.set()
            if answer.status == 503:
                break
        kept.close()

    clients = [threading.Thread(target=ask_until_refused, args=(seed,)) for seed in range(CLIENTS)]
    for one in clients:
        one.start()
    begun.wait(60)
    time.sleep(2)
    stopped = time.monotonic()
    container.kill(signal.SIGTERM)
    took = time.monotonic() - stopped
    for one in clients:
        one.join(60)
    counts = Counter(outcomes)
    print(f"{counts}; stopped after {took:.1f} s")
    assert counts.keys() == {"right", "503"}
    assert counts["503"] == CLIENTS
    assert counts["right"] > 50
    assert took < STOP_S
    assert container.process is not None
    assert container.process.returncode == 0


def test_a_worker_that_hangs_does_not_hold_it_up(start: Start, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")
    (tmp_path / "store").mkdir()
    config = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "maxBatchDelay": 5}
    archive = make(tmp_path / "store", "digits", tmp_path / "slow.py", config)
    assert archive.file.is_file()
    container = start(tmp_path / "store", 18)
    asking = threading.Thread(target=_sleep, args=(container.client,), daemon=True)
    asking.start()
    time.sleep(1)
    stopped = time.monotonic()
    container.kill(signal.SIGTERM)
    assert 5 < time.monotonic() - stopped < 25
    asking.join(20)
    assert not listens(int(container.client.inference.rpartition(":")[2]))


def _sleep(client: Client) -> None:
    with contextlib.suppress(OSError):
        client.predict("digits", b"sleep")
