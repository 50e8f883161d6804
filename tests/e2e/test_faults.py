"""Faults of every kind in a real TorchServe: who gets which answer, and how long until the next good one."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kill_workers
import pytest
from checked_load import samples
from checked_load.load import HUNG, RIGHT, WRONG, Load
from demo import SAMPLES
from server import tokens
from server.client import Client
from server.config import config_on_free_ports
from server.http import Answer, request
from server.process import Server

from handlers import faults

pytestmark = pytest.mark.e2e

HANG_S = 3
RESTART_S = 150  # a worker took 25 s to start on two busy cores
WORKER_ENDS = {
    "exit": (),
    "lost-gpu": ("the GPU's context is lost, this worker ends",),
    "hang": (f"running the network took more than {HANG_S} s (hangTimeout), this worker ends", "run_with_faults"),
    "hang-locked": ("Timeout (0:00:0", "run_with_faults"),
}


@pytest.fixture(scope="module")
def injected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("injected")


@pytest.fixture(scope="module")
def faulty(
    injected: Path, packager: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server of one model, which fails on demand."""
    folder = tmp_path_factory.mktemp("faulty")
    packager(
        folder,
        "image-classifier",
        *("--weights", "archive/digits", "--parity-data", str(SAMPLES), "--precision", "fp32", "--name", "digits"),
        *("--engine", "torch_eager", "--batch-size", "4", "--max-batch-delay-ms", "20"),
    )
    replace_in_settings(folder / "digits.mar", "hangTimeout: -1", f"hangTimeout: {HANG_S}")
    server = Server(folder, config_on_free_ports(folder / "config.properties"), folder, ["digits=digits.mar"])
    os.environ[faults.VARIABLE] = str(injected)
    try:
        server.start()
    finally:
        del os.environ[faults.VARIABLE]
    try:
        server.wait({"digits": lambda client: ask(client).status == 200}, timeout_s=180, report=print)
        yield server
    finally:
        server.stop()


def replace_in_settings(mar: Path, old: str, new: str) -> None:
    """Change the settings in an archive."""
    with zipfile.ZipFile(mar) as archive:
        held = {item.filename: archive.read(item) for item in archive.infolist()}
    config = held["model-config.yaml"].decode()
    assert old in config
    held["model-config.yaml"] = config.replace(old, new).encode()
    with zipfile.ZipFile(mar, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)


@pytest.fixture(autouse=True)
def well(faulty: Server, injected: Path) -> None:
    """Begin with a worker that answers, whatever the test before has done."""
    for path in injected.iterdir():
        path.unlink()
    wait_until_good(faulty.client)


def ask(client: Client, name: str = "seven") -> Answer:
    return client.predict("digits", (SAMPLES / f"{name}.png").read_bytes(), "image/png", timeout_s=60)


def log_of(server: Server) -> str:
    return server.log.read_text(encoding="utf-8", errors="replace")


def wait_until_good(client: Client) -> float:
    """Seconds until a prediction is right again."""
    began = time.monotonic()
    while ask(client).status != 200:
        assert time.monotonic() < began + RESTART_S
        time.sleep(0.1)
    return time.monotonic() - began


def batch_of(client: Client, count: int) -> list[Answer]:
    """Answers to requests that are sent at once."""
    with ThreadPoolExecutor(count) as pool:
        return [*pool.map(ask, [client] * count)]


def test_it_says_that_faults_are_injected(faulty: Server) -> None:
    assert "FAULTS ARE INJECTED" in log_of(faulty)


@pytest.mark.parametrize("fault", WORKER_ENDS)
def test_a_worker_that_ends_is_followed_by_a_good_one(
    faulty: Server, injected: Path, fault: str, record_property: Callable[[str, object], None]
) -> None:
    before = log_of(faulty)
    (injected / fault).touch()
    began = time.monotonic()
    answer = ask(faulty.client)
    failed_s = time.monotonic() - began
    assert answer.status in (500, 507)  # 507 is TorchServe's for a process that was killed
    assert answer.json()["type"] == "InternalServerException"
    limit_s = HANG_S + 5 if fault.startswith("hang") else 5
    assert failed_s < limit_s
    good_s = wait_until_good(faulty.client)
    record_property("seconds", f"{failed_s:.1f} to the error, {good_s:.1f} more to the next good answer")
    print(f"{fault}: {failed_s:.1f} s to the error, {good_s:.1f} s more to the next good answer")
    said = log_of(faulty)[len(before) :]
    for words in WORKER_ENDS[fault]:
        assert words in said


def test_a_slow_batch_is_no_hung_one(faulty: Server, injected: Path) -> None:
    (pid,) = {worker["pid"] for worker in faulty.client.describe("digits")["workers"]}
    (injected / "slow").write_text(str(HANG_S * 0.6))
    try:
        assert ask(faulty.client).status == 200
    finally:
        (injected / "slow").unlink()
    assert [worker["pid"] for worker in faulty.client.describe("digits")["workers"]] == [pid]


def test_short_memory_costs_no_answer_and_is_described(faulty: Server, injected: Path) -> None:
    (injected / "oom").write_text("1")
    try:
        while "memory" not in faulty.client.customized("digits"):
            assert {answer.status for answer in batch_of(faulty.client, 8)} == {200}
    finally:
        (injected / "oom").unlink()
    memory = faulty.client.customized("digits")["memory"]
    assert (memory["largestBatch"], memory["unit"]) == (1, "images")
    assert log_of(faulty).count("memory is short for a batch of") == 1


def test_a_spoilt_row_fails_alone(faulty: Server, injected: Path) -> None:
    (injected / "nan").touch()
    answers = batch_of(faulty.client, 4)
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 500]
    (failed,) = [answer for answer in answers if answer.status == 500]
    assert failed.json()["type"] == "NotFinite"
    assert "gives finite outputs: suspect the GPU" in log_of(faulty)


def test_workers_that_are_killed_under_load(faulty: Server) -> None:
    """No answer goes to another's request on connections that are kept, and nobody waits for ever."""
    load = Load(faulty.client, "digits", samples.known(faulty.client, "digits", samples.files(SAMPLES)))
    with load.running():
        time.sleep(1)
        waits = [kill_workers.kill_one(load, 1.0) for _ in range(2)]
    counts = load.counts()
    print(f"{dict(counts)}; good again after {waits} s; longest wait {load.longest_s():.1f} s")
    assert not counts.keys() & {WRONG, HUNG}
    assert counts[RIGHT] > 0
    assert all(waited is not None and waited < RESTART_S for waited in waits)


def test_nothing_is_computed_for_a_client_who_has_given_up(faulty: Server, injected: Path) -> None:
    """Two requests of the same time limit: one says when it was sent, and waits for a slow batch longer than that."""
    client = faulty.client
    (injected / "slow").write_text("1.5")
    body, url = (SAMPLES / "seven.png").read_bytes(), f"{client.inference}/predictions/digits"
    headers = tokens.bearer(client.token("inference")) | {"X-Timeout-Ms": "400"}
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, client)
        time.sleep(0.5)  # it is being computed
        known = pool.submit(request, "POST", url, body, headers | {"X-Request-Start": f"t={time.time():.3f}"})
        unknown = pool.submit(request, "POST", url, body, headers)
        (injected / "slow").write_text("0")
        assert first.result().status == 200
        assert (known.result().status, known.result().json()["type"]) == (504, "DeadlinePassed")
        assert unknown.result().status == 200  # it counts from the worker on
    (injected / "slow").unlink()
