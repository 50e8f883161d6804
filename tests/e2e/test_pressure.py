"""More requests than fit are refused, and TorchServe serves on; with small bodies, a small queue and a small heap.

With Java's usual collector (G1) 2 of 7 such floods left the accepted requests waiting for responseTimeout: it
does not move large objects, and TorchServe loses the OutOfMemoryError of a message to the worker.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from checked_load.load import RIGHT, Load
from checked_load.samples import Sample
from server import tokens
from server.client import Client
from server.config import read_properties
from server.paths import ROOT
from server.process import Server

pytestmark = pytest.mark.e2e

BODY, QUEUE, BATCH, CLIENTS = 2 << 20, 16, 8, 120
FLOODS = 5
WAIT_S = 90
IDLE, SLOW_SENDERS, VANISHING = 1000, 50, 20
MANY_IDLE, PER_ADDRESS = 10_000, 1000
OTHER_FILES = 500  # that Java and this process hold besides
IDLE_MB = 20  # of Java's memory per 1,000 connections; 4 were measured
BATCH_S = 0.3  # as SLOW below
SPARE = 3  # machines that run tests are busy
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


@pytest.fixture(scope="module")
def pressed(tmp_path_factory: pytest.TempPathFactory, config_maker: Callable[[Path], Path]) -> Iterator[Server]:
    """A server of the slow model, with a heap that does not hold what CLIENTS send at once."""
    folder = tmp_path_factory.mktemp("pressed")
    slow_model(folder)
    path = config_maker(folder / "config.properties")
    text = path.read_text(encoding="utf-8")
    for key, value in (("max_request_size", BODY + 1), ("job_queue_size", QUEUE)):
        text = re.sub(rf"(?m)^{key}=.*$", f"{key}={value}", text)
    text = re.sub(r"-Xmx\w+ -XX:MaxDirectMemorySize=\w+", "-Xmx256m -XX:MaxDirectMemorySize=512m", text)
    path.write_text(text, encoding="utf-8")
    server = Server(folder / "server", path, folder, ["slow=slow.mar"])
    server.folder.mkdir()
    server.start()
    try:
        server.wait({"slow": answers}, timeout_s=120, report=print)
        yield server
        assert "OutOfMemoryError" not in server.log.read_text(encoding="utf-8", errors="replace")
    finally:
        server.stop()


def test_a_flood_is_refused_and_the_server_serves_on(pressed: Server) -> None:
    config, client = pressed.config, pressed.client
    assert CLIENTS * BODY * 0.9 < heap_of(config) < CLIENTS * BODY * 3  # all at once, with their copies, do not fit
    assert needed(config, BATCH) * 1.5 < heap_of(config)
    for keep_alive in [True] * FLOODS + [False]:
        statuses = flood(client, keep_alive)
        assert statuses.keys() <= {200, 503}, f"keep-alive {keep_alive}: {statuses}"
        assert statuses[200] > QUEUE
    assert answers(client)
    assert client.predict("slow", bytes(BODY + 2)).status == 413


def test_at_thrice_the_capacity_accepted_requests_wait_no_longer_than_the_queue(pressed: Server) -> None:
    """The worker answers 27 requests per second; about a hundred come."""
    samples = [Sample(bytes(1000 * size), "", 1000 * size) for size in range(1, 25)]
    load = Load(pressed.client, "slow", samples, connections=3 * (QUEUE + BATCH), pause_s=0.5)
    with load.running():
        time.sleep(8)
    ended = time.monotonic()
    assert answers(pressed.client)
    recovery_s = time.monotonic() - ended
    counts = load.counts()
    waited = sorted(outcome.ended - outcome.began for outcome in load.outcomes if outcome.kind == RIGHT)
    p50, p99 = (waited[int(len(waited) * share)] for share in (0.5, 0.99))
    print(f"{dict(counts)}; accepted: p50 {p50:.2f} s, p99 {p99:.2f} s; the next answer after {recovery_s:.2f} s")
    assert counts.keys() == {RIGHT, "503"}
    assert counts["503"] > counts[RIGHT]
    assert p99 < SPARE * BATCH_S * (QUEUE / BATCH + 2)  # the batch that runs, the queue, and its own
    assert recovery_s < SPARE * 2 * BATCH_S


def test_idle_slow_and_vanishing_clients_cost_nothing_lasting(pressed: Server) -> None:
    client = pressed.client
    java = next(process for process in psutil.process_iter(["name"]) if is_java_of(pressed, process))
    before = java.num_fds()
    head = (
        f"POST /predictions/slow HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY}\r\n"
        f"Authorization: Bearer {client.token('inference')}\r\n\r\n"
    ).encode()
    with contextlib.ExitStack() as held:
        for _ in range(IDLE):
            connect(client, held)
        for _ in range(SLOW_SENDERS):
            connect(client, held).sendall(head + bytes(BODY // 8))
        for _ in range(VANISHING):
            sender = connect(client, held)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
            sender.sendall(head + bytes(BODY))
            sender.close()
        print(f"an answer took {seconds_of_an_answer(client):.2f} s meanwhile; file descriptors: {java.num_fds()}")
        assert java.num_fds() >= before + IDLE
    wait_for(lambda: java.num_fds() <= before + 20)
    assert answers(client)


def test_ten_thousand_idle_connections_cost_little(pressed: Server) -> None:
    """A second lot of them takes the memory of the first one again. Prints the figures of docs/operations.md."""
    client = pressed.client
    java = next(process for process in psutil.process_iter(["name"]) if is_java_of(pressed, process))
    count = min(MANY_IDLE, *(limit - OTHER_FILES for limit in (java.rlimit(psutil.RLIMIT_NOFILE)[0], open_files())))
    assert all(answers(client) for _ in range(5))  # so that requests themselves need no more memory
    known, files = java.memory_info().rss, java.num_fds()
    grew = []
    for _ in range(2):
        with contextlib.ExitStack() as held:
            for number in range(count):
                connect(client, held, f"127.0.0.{2 + number // PER_ADDRESS}")
            wait_for(lambda: java.num_fds() >= files + count - 20)
            grew.append((java.memory_info().rss - known) / 1e6)
            waits = [seconds_of_an_answer(client) for _ in range(5)]
        wait_for(lambda: java.num_fds() <= files + 20)
        print(f"{count} idle connections: Java grew by {grew[-1]:.0f} MB; answers took {max(waits):.2f} s at most")
        assert max(waits) < SPARE * 2 * BATCH_S
        assert grew[-1] < IDLE_MB * max(1, count / 1000)
    assert grew[1] - grew[0] < max(50, grew[0])
    assert answers(client)


def open_files() -> int:
    """How many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def wait_for(is_so: Callable[[], bool]) -> None:
    """Wait for Java to take or to drop connections."""
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def seconds_of_an_answer(client: Client) -> float:
    began = time.monotonic()
    assert answers(client)
    return time.monotonic() - began


def connect(client: Client, held: contextlib.ExitStack, source: str = "") -> socket.socket:
    """Open a connection. source: the address on this machine that it comes from, because one has too few ports."""
    address = urlsplit(client.inference)
    opened = socket.create_connection((address.hostname, address.port), 30, (source, 0) if source else None)
    return held.enter_context(opened)


def is_java_of(server: Server, process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        assert server.process is not None
        return process.info["name"] == "java" and os.getpgid(process.pid) == server.process.pid
    return False


@pytest.fixture(autouse=True, scope="module")
def many_files() -> Iterator[None]:
    """Allow this process a connection for each client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * MANY_IDLE), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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
