"""scripts/deployment/per-gpu with two small TorchServes, without GPUs: spread, a server that dies, SIGTERM."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from per_gpu.plan import STEP
from serving_bench.archives import make

from tests.e2e.programs import DEPLOYMENT, certificate, free_block, program, until
from tests.e2e.test_tls import GRPC, field

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

CLIENTS = 8
HANDLER = """
import os
import time

class Echo:
    def initialize(self, context):
        pass

    def handle(self, rows, context):
        bodies = [bytes(row.get("body") or row.get("data") or b"") for row in rows]
        if any(body.startswith(b"sleep") for body in bodies):
            time.sleep(1.5)
        return [f'{{"server": "{os.environ["RUN_FOLDER"]}", "body": "{body.decode()}"}}' for body in bodies]
"""


@dataclass
class Fleet:
    """The running command. key: the one that it made for its clients."""

    process: subprocess.Popen[bytes]
    folder: Path
    port: int
    trusted: ssl.SSLContext

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text(encoding="utf-8", errors="replace")

    @property
    def key(self) -> str:
        return (self.folder / "run" / "keys").read_text(encoding="utf-8").strip()

    def ask(self, body: str, key: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection("localhost", self.port, timeout=60, context=self.trusted)
        with contextlib.closing(connection):
            connection.request("POST", "/predictions/echo", body, {"Authorization": f"Bearer {key or self.key}"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def ask_right(self, body: str) -> str:
        """The server that gave the right answer; else what came."""
        try:
            status, answer = self.ask(body)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        found = json.loads(answer)
        return str(Path(found["server"]).parent.name) if status == 200 and found["body"] == body else str(status)

    def java(self, server: str) -> psutil.Process:
        """The Java of one server."""
        folder = str(self.folder / "run" / server / "torchserve")
        ours = psutil.Process(self.process.pid).children(recursive=True)
        (found,) = [one for one in ours if one.name() == "java" and one.cwd() == folder]
        return found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("per-gpu")
    (folder / "echo.py").write_text(HANDLER, encoding="utf-8")
    (folder / "store").mkdir()
    make(folder / "store", "echo", folder / "echo.py",
         {"minWorkers": 1, "maxWorkers": 1, "batchSize": 8, "maxBatchDelay": 5})  # fmt: skip
    nginx, first, tls = program("nginx"), free_block(2 * STEP + 1), certificate(folder / "tls")
    command = [str(DEPLOYMENT / "per-gpu"), "echo=echo.mar", "--servers=2", f"--model-store={folder / 'store'}"]
    command += [f"--folder={folder / 'run'}", f"--first-port={first}", f"--port={first + 2 * STEP}"]
    hidden = ("PYTHONPATH", "METRICS_ADDRESS", "TS_CONFIG")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    with (folder / "said").open("wb") as said, (folder / "requests").open("wb") as requests:
        process = subprocess.Popen(
            [*command, f"--nginx={nginx}", f"--tls={tls}", "--host=127.0.0.1"],
            env={**environment, "CUDA_VISIBLE_DEVICES": "", "JAVA_HEAP": "300m"},
            stdout=requests,
            stderr=said,
        )
    trusted = ssl.create_default_context(cafile=str(tls / "tls.crt"))
    running = Fleet(process, folder, first + 2 * STEP, trusted)
    try:
        until(lambda: "all 2 servers are ready" in running.said or process.poll() is not None, timeout_s=90)
        assert process.poll() is None, running.said
        until(lambda: running.ask_right("a").startswith("server"))
        yield running
    finally:
        left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.kill()


def test_one_key_opens_all_servers_and_both_answer(fleet: Fleet) -> None:
    with ThreadPoolExecutor(CLIENTS) as pool:
        counts = Counter(pool.map(fleet.ask_right, [f"b{index}" for index in range(200)]))
    print(counts)
    assert counts.keys() == {"server-0", "server-1"}
    assert min(counts.values()) > 40
    assert {fleet.ask("a", "wrong" * 8)[0] for _ in range(4)} == {400}
    files = fleet.folder.glob("run/*/torchserve/key_file.json")
    tokens = [json.loads(path.read_text(encoding="utf-8"))["inference"]["key"] for path in files]
    assert len(tokens) == 2
    assert {fleet.ask("a", token)[0] for token in tokens} == {400}
    assert not any(token in fleet.said for token in (*tokens, fleet.key))
    assert not [path for path in (fleet.folder / "run").rglob("*") if path.is_file() and path.stat().st_mode & 0o077]


def test_a_server_that_dies_gives_no_wrong_answer_and_comes_back(fleet: Fleet) -> None:
    """Only requests that it had at that moment fail, with 502: they are not sent to another server."""
    pool = ThreadPoolExecutor(2)
    sleepers = list[Future[str]]()
    for name in ("first", "second"):  # one at each server, because the second goes to the idle one
        sleepers.append(pool.submit(fleet.ask_right, f"sleep {name}"))
        time.sleep(0.3)
    outcomes, ended = list[str](), threading.Event()

    def ask_on(seed: int) -> None:
        while not ended.is_set():
            outcomes.append(fleet.ask_right(f"{seed}-{len(outcomes)}"))
            time.sleep(0.02)  # the server that starts needs cores too

    clients = [threading.Thread(target=ask_on, args=(seed,)) for seed in range(CLIENTS)]
    for one in clients:
        one.start()
    try:
        time.sleep(0.2)
        fleet.java("server-0").kill()
        killed = len(outcomes)
        until(lambda: "server 0 has ended" in fleet.said)
        after = len(outcomes)
        until(lambda: fleet.said.count("server 0 is ready") == 2, timeout_s=60)
        back = len(outcomes)
        until(lambda: "server-0" in outcomes[back:])
    finally:
        ended.set()
        for one in clients:
            one.join(60)
    counts = Counter(outcomes)
    print(counts, len(outcomes), killed, after, back)
    assert sorted(one.result() for one in sleepers) == ["502", "server-1"]
    pool.shutdown()
    assert counts.keys() <= {"server-0", "server-1", "502"}
    assert back - after > 10 * CLIENTS
    assert counts["502"] <= CLIENTS
    assert "502" not in outcomes[after + CLIENTS : back]


def test_grpc_is_balanced_too(fleet: Fleet) -> None:
    grpc = pytest.importorskip("grpc", reason="needs the test extra's grpcio")
    credentials = grpc.ssl_channel_credentials((fleet.folder / "tls" / "tls.crt").read_bytes())
    sent = field(1, b"echo") + field(3, field(1, b"data") + field(2, b"sent by gRPC"))
    with grpc.secure_channel(f"localhost:{fleet.port}", credentials) as channel:
        call = channel.unary_unary(f"{GRPC}.inference.InferenceAPIsService/Predictions")
        answers = [call(sent, metadata=(("authorization", f"Bearer {fleet.key}"),), timeout=60) for _ in range(20)]
        with pytest.raises(grpc.RpcError) as refused:
            call(sent, metadata=(("authorization", f"Bearer {'wrong' * 8}"),), timeout=60)
    found = Counter(name for answer in answers for name in (b"server-0", b"server-1") if name in answer)
    assert found.keys() == {b"server-0", b"server-1"}
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_sigterm_answers_all_that_was_accepted(fleet: Fleet) -> None:
    children = psutil.Process(fleet.process.pid).children(recursive=True)
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(fleet.ask_right, f"sleep {index}") for index in range(CLIENTS)]
        time.sleep(0.7)
        began = time.monotonic()
        fleet.process.send_signal(signal.SIGTERM)
        assert Counter(one.result() for one in asked).keys() == {"server-0", "server-1"}
    assert fleet.process.wait(40) == 0
    print(f"ended after {time.monotonic() - began:.1f} s")
    until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children))
