"""Under constant load scripts/deploy and scripts/scale lose no request; a deploy that fails leaves no trace."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from server.client import Client
from server.paths import ROOT
from server.process import Server
from serving_bench.archives import make
from soak import known, questions
from soak.traffic import Connection, Tally, Traffic

pytestmark = pytest.mark.e2e

CLIENTS = 8
CONFIG = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 4, "maxBatchDelay": 5}
BROKEN = "class H:\n    def initialize(self, context):\n        raise ValueError('no weights here')\n"
OTHER = "class H:\n    def initialize(self, context):\n        pass\n"
HANDLE = "\n    def handle(self, rows, context):\n        return [b'[]' for row in rows]\n"


@pytest.fixture(scope="module")
def traffic(client: Client) -> Traffic:
    """Clients of the digits, in all forms, with distinct pictures whose answers are known."""
    files, token = questions.pictures(), client.token("inference")
    forms = questions.ImageForms(files).all()
    bad = {name: item for name, item in questions.bad_messages(files[0], "a text").items() if item[0] == "digits"}
    connection = Connection(client.inference, token)
    answers = known.ask_all(forms, len(files), bad, connection.ask)
    connection.close()
    inputs = {"digits": known.distinct(answers.vectors["digits"])}
    assert len(inputs["digits"]) >= 8
    return Traffic(client.inference, token, forms, inputs, bad, answers, CLIENTS, rate=0)


@contextlib.contextmanager
def load(traffic: Traffic) -> Iterator[Tally]:
    """Constant load until the block ends; nothing may have failed then, and much was answered."""
    traffic.tally, traffic.ended = Tally(), threading.Event()
    clients = [threading.Thread(target=traffic.run, args=(seed,)) for seed in range(CLIENTS)]
    for one in clients:
        one.start()
    try:
        time.sleep(1)
        yield traffic.tally
        time.sleep(1)
    finally:
        traffic.ended.set()
        for one in clients:
            one.join()
    print(f"{traffic.tally.answered} answered, {traffic.tally.failed} failed, {traffic.tally.hung_up} hung up")
    assert traffic.tally.failures == []
    assert traffic.tally.answered > 50


def command(server: Server, name: str, *arguments: str) -> subprocess.Popen[str]:
    where = ["--folder", str(server.folder), "--ts-config", str(server.config_file)]
    line = [sys.executable, str(ROOT / "scripts" / "commands" / name), *arguments, *where]
    return subprocess.Popen(line, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(server: Server, name: str, *arguments: str) -> tuple[int, str]:
    process = command(server, name, *arguments)
    output, _ = process.communicate(timeout=300)
    print(output)
    return process.returncode, output


def deploy(server: Server, file: Path | str, *options: str) -> tuple[int, str]:
    path = server.model_store / file
    return run(server, "deploy.py", "digits", str(path), "--model-store", str(server.model_store), *options)


def versions(client: Client) -> tuple[str, dict[str, int]]:
    """The default version, and how many workers each has."""
    every = client.manage("GET", "/models/digits/all").json()
    return client.describe("digits")["modelVersion"], {v["modelVersion"]: len(v["workers"]) for v in every}


def test_scaling_down_loses_nothing(server: Server, client: Client, traffic: Traffic) -> None:
    client.scale("digits", 3)
    with load(traffic) as tally:
        assert run(server, "scale.py", "digits", "1")[0] == 0
        before = tally.answered
        time.sleep(2)
        assert tally.answered > before
    assert versions(client) == ("1.0", {"1.0": 1})


def test_a_deploy_loses_nothing_forth_and_back(server: Server, client: Client, traffic: Traffic) -> None:
    with load(traffic):
        status, output = deploy(server, "digits2.mar")
        assert status == 0
        assert versions(client) == ("2.0", {"2.0": 1})
        for step in (
            "registered version 2.0",
            "is ready",
            "warmed",
            "6 of 6",
            "is the default",
            "removed version 1.0",
        ):
            assert step in output
        assert deploy(server, "digits.mar")[0] == 0
    assert versions(client) == ("1.0", {"1.0": 1})


@pytest.mark.parametrize("line", ["registered version 2.0", "version 2.0 is the default"])
def test_an_interrupted_deploy_goes_back(server: Server, client: Client, traffic: Traffic, line: str) -> None:
    with load(traffic):
        arguments = ["digits", str(server.model_store / "digits2.mar"), "--model-store", str(server.model_store)]
        with command(server, "deploy.py", *arguments) as process:
            assert process.stdout is not None
            for said in process.stdout:
                if line in said:
                    process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 1
    assert versions(client) == ("1.0", {"1.0": 1})


@pytest.mark.parametrize(
    ("source", "reason"),
    [(BROKEN + HANDLE, "ValueError: no weights here"), (OTHER + HANDLE, "answers differ from those of 1.0")],
    ids=["cannot load", "another model"],
)
def test_a_failing_deploy_leaves_no_trace(
    server: Server, client: Client, traffic: Traffic, tmp_path: Path, source: str, reason: str
) -> None:
    (tmp_path / "other.py").write_text(source, encoding="utf-8")
    archive = make(tmp_path, "other", tmp_path / "other.py", CONFIG, "--version", "3.0")
    with load(traffic):
        status, output = deploy(server, archive.file)
    assert status == 1
    assert reason in output
    assert "all is as before" in output
    assert versions(client) == ("1.0", {"1.0": 1})
    assert not (server.model_store / archive.file.name).exists()


def test_what_cannot_work_is_refused_before_anything_changes(server: Server, client: Client, tmp_path: Path) -> None:
    status, output = deploy(server, "digits.mar")
    assert (status, "--model-version" in output) == (1, True)
    (tmp_path / "no.mar").write_bytes(b"no archive")
    assert "is no archive of TorchServe" in deploy(server, tmp_path / "no.mar")[1]
    status, output = deploy(server, "digits2.mar", "--dry-run")
    assert (status, "nothing was changed" in output) == (0, True)
    assert versions(client) == ("1.0", {"1.0": 1})


def test_clients_that_name_the_old_version_keep_it(server: Server, client: Client) -> None:
    seven, ended = questions.pictures(1)[0], threading.Event()
    statuses = set[int]()

    def ask() -> None:
        while not ended.wait(0.2):
            statuses.add(client.predict("digits", seven, "image/png", "/1.0").status)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        status, output = deploy(server, "digits2.mar")
    finally:
        ended.set()
        asking.join()
    assert status == 1
    assert "requests named version 1.0" in output
    assert statuses == {200}
    assert versions(client) == ("1.0", {"1.0": 1})
