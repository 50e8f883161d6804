"""More requests than fit are refused, and TorchServe serves on; with small bodies, a small queue and a small heap.

With Java's usual collector (G1) a third of these floods left the accepted requests waiting for responseTimeout: it
does not move large objects, and TorchServe loses the OutOfMemoryError of a message to the worker.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from server import tokens
from server.client import Client
from server.config import read_properties
from server.paths import ROOT
from server.process import Server

pytestmark = pytest.mark.e2e

BODY, QUEUE, BATCH, CLIENTS = 2 << 20, 16, 8, 120
FLOODS = 5
WAIT_S = 90
SLOW = """
import time

class Slow:
    def initialize(self, context):
        pass

    def handle(self, rows, context):
        time.sleep(0.3)
        return [str(len(row["body"])) for row in rows]
"""
SETTINGS = f"minWorkers: 1\nmaxWorkers: 1\nbatchSize: {BATCH}\nmaxBatchDelay: 5\n"


def heap_of(config: dict[str, str]) -> int:
    """Bytes of -Xmx."""
    found = re.search(r"-Xmx(\d+)([mg])\b", config["vmargs"])
    assert found
    return int(found[1]) << {"m": 20, "g": 30}[found[2]]


def needed(config: dict[str, str], batch: int) -> int:
    """Bytes that bodies can take in the heap at worst, as config.properties has it."""
    threads = int(config["number_of_netty_threads"])
    return (int(config["job_queue_size"]) + 3 * batch + 2 * threads) * int(config["max_request_size"])


def slow_model(folder: Path) -> None:
    (folder / "slow.py").write_text(SLOW, encoding="utf-8")
    (folder / "model-config.yaml").write_text(SETTINGS, encoding="utf-8")
    command = [str(Path(sys.executable).parent / "torch-model-archiver"), "--model-name", "slow", "--version", "1.0"]
    command += ["--handler", "slow.py", "--config-file", "model-config.yaml", "--export-path", str(folder)]
    environment = {**os.environ, "TMPDIR": str(folder)}
    subprocess.run(command, cwd=folder, check=True, env=environment)


@pytest.mark.parametrize("batch", [8, 64])
def test_the_heap_holds_what_the_queue_may(batch: int) -> None:
    config = read_properties(ROOT / "config.properties")
    assert needed(config, batch) * 1.5 <= heap_of(config)


def test_a_flood_is_refused_and_the_server_serves_on(tmp_path: Path, config_maker: Callable[[Path], Path]) -> None:
    slow_model(tmp_path)
    path = config_maker(tmp_path / "config.properties")
    text = path.read_text(encoding="utf-8")
    for key, value in (("max_request_size", BODY + 1), ("job_queue_size", QUEUE)):
        text = re.sub(rf"(?m)^{key}=.*$", f"{key}={value}", text)
    text = re.sub(r"-Xmx\w+ -XX:MaxDirectMemorySize=\w+", "-Xmx256m -XX:MaxDirectMemorySize=512m", text)
    path.write_text(text, encoding="utf-8")
    config = read_properties(path)
    assert CLIENTS * BODY * 0.9 < heap_of(config) < CLIENTS * BODY * 3  # all at once, with their copies, do not fit
    assert needed(config, BATCH) * 1.5 < heap_of(config)
    server = Server(tmp_path / "server", path, tmp_path, ["slow=slow.mar"])
    server.folder.mkdir()
    server.start()
    try:
        server.wait({"slow": answers}, timeout_s=120, report=print)
        client = server.client
        for keep_alive in [True] * FLOODS + [False]:
            statuses = flood(client, keep_alive)
            assert statuses.keys() <= {200, 503}, f"keep-alive {keep_alive}: {statuses}"
            assert statuses[200] > QUEUE
        assert answers(client)
        assert client.predict("slow", bytes(BODY + 2)).status == 413
        assert "OutOfMemoryError" not in server.log.read_text(encoding="utf-8", errors="replace")
    finally:
        server.stop()


def flood(client: Client, keep_alive: bool) -> Counter[int | str]:
    """Status, or name of the exception, of CLIENTS requests at once. keep_alive: none says that it will close."""
    headers = tokens.bearer(client.token("inference")) | ({} if keep_alive else {"Connection": "close"})
    limits = httpx.Limits(max_connections=None)

    def ask(asking: httpx.Client) -> int | str:
        try:
            return asking.post(
                f"{client.inference}/predictions/slow", content=bytes(BODY), headers=headers
            ).status_code
        except httpx.HTTPError as error:
            return type(error).__name__

    with httpx.Client(trust_env=False, limits=limits, timeout=WAIT_S) as asking, ThreadPoolExecutor(CLIENTS) as pool:
        return Counter(pool.map(ask, [asking] * CLIENTS))


def answers(client: Client) -> bool:
    answer = client.predict("slow", bytes(BODY))
    return (answer.status, answer.body) == (200, str(BODY).encode())
