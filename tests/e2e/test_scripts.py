"""What people type: scripts/serve, scripts/scale, scripts/ready and scripts/token, as they are."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from server.client import Client
from server.errors import ServerError
from server.paths import ROOT
from server.ports import free_ports
from server.process import Server
from serving_bench import archives

pytestmark = pytest.mark.e2e


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "commands" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_scale_and_token(server: Server, client: Client) -> None:
    assert run("tokens.py", *where(server)).stdout.strip() == client.token("inference")
    scaled = run("scale.py", "sentences", "2", *where(server))
    assert scaled.returncode == 0, scaled.stderr
    assert "2 of 2 workers ready" in scaled.stdout
    assert len(client.describe("sentences")["workers"]) == 2
    assert run("scale.py", "sentences", "1", *where(server)).returncode == 0
    unknown = run("scale.py", "nobody", "1", *where(server))
    assert unknown.returncode == 1
    assert "404 Model not found: nobody; registered models: digits, sentences" in unknown.stderr
    assert "go on starting workers" not in unknown.stderr


BROKEN = """\
class Broken:
    def initialize(self, context): {what}
    def handle(self, rows, context): return rows
"""


def archive_of(store: Path, name: str, what: str) -> None:
    """An archive in `store` whose handler does `what` when it loads."""
    handler = store / f"{name}.py"
    handler.write_text(BROKEN.format(what=what))
    archives.make(store, name, handler, {})
    handler.unlink()


def where(server: Server) -> tuple[str, ...]:
    return ("--folder", str(server.folder), "--ts-config", str(server.config_file))


def test_ready_sends_every_model_a_prediction(server: Server) -> None:
    done = run("ready.py", *where(server))
    assert done.returncode == 0, done.stderr
    for name in ("digits", "sentences"):
        assert re.search(rf"^{name} answers, in \d+ ms$", done.stdout, re.MULTILINE)
    one = run("ready.py", "sentences", *where(server), "--timeout-s", "30")
    assert (one.returncode, one.stdout.count("answers")) == (0, 1)


def test_ready_says_why_not(server: Server, client: Client, tmp_path: Path) -> None:
    client.scale("sentences", 0)
    try:
        done = run("ready.py", *where(server))
        assert done.returncode == 1
        assert "digits answers" in done.stdout
        assert "sentences does not answer: it has no workers; scripts/scale sentences 1" in done.stderr
    finally:
        client.scale("sentences", 1)
    unknown = run("ready.py", "nobody", *where(server))
    assert unknown.returncode == 1
    assert "nobody does not answer: /models/nobody: 404" in unknown.stderr
    elsewhere = run("ready.py", "--folder", str(tmp_path))
    assert elsewhere.returncode == 1
    assert "key_file.json" in elsewhere.stderr


@pytest.fixture
def broken(server: Server, client: Client) -> Iterator[Callable[[str], str]]:
    """broken(what): the name of a model that is registered without workers, and does `what` when it loads."""
    made: list[str] = []

    def make(what: str) -> str:
        name = f"broken{len(made)}"
        made.append(name)
        archive_of(server.model_store, name, what)
        client.register(name, {"url": f"{name}.mar", "initial_workers": 0})
        return name

    yield make
    for name in made:
        client.manage("DELETE", f"/models/{name}")
        (server.model_store / f"{name}.mar").unlink()


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("raise ValueError('the weights are missing')", "ValueError: the weights are missing"),
        ("raise RuntimeError('size mismatch')", "RuntimeError: size mismatch"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_scale_and_ready_say_why_a_worker_does_not_start(
    server: Server, broken: Callable[[str], str], what: str, why: str
) -> None:
    name, log = broken(what), server.folder / "logs" / "model_log.log"
    scaled = run("scale.py", name, "1", *where(server))
    assert scaled.returncode == 1
    (line, _) = scaled.stderr.splitlines()
    assert line == f"error: a worker of {name} cannot load: {why} (all of it: {log})"
    asked = run("ready.py", name, *where(server))
    assert asked.returncode == 1
    assert (
        asked.stderr == f"{name} does not answer: no worker is ready; a worker could not load: {why} (log: {log})\n"
    )


def test_scale_starts_a_worker_again_that_has_failed(server: Server, broken: Callable[[str], str]) -> None:
    """TorchServe itself waits for longer from try to try, and gives up after five minutes."""
    name = broken("import os; os._exit(9)")
    first = run("scale.py", name, "1", *where(server))
    assert "its process ended and gave no reason (Worker died.)" in first.stderr
    time.sleep(4)  # by then TorchServe waits for some seconds
    again = run("scale.py", name, "1", *where(server), "--timeout", "60")
    assert "its process ended and gave no reason" in again.stderr
    states = (server.folder / "logs" / "ts_log.log").read_text(encoding="utf-8")
    assert len(set(re.findall(rf"W-(\d+)-{name}_1.0 State change", states))) >= 2  # a new worker, and no old one


def test_scale_waits_for_a_worker_that_is_still_loading(server: Server, broken: Callable[[str], str]) -> None:
    """And does not start it anew, though TorchServe describes it as it describes one that has failed."""
    name = broken("import time; time.sleep(8)")
    server.client.manage("PUT", f"/models/{name}", {"min_worker": 1, "max_worker": 1})
    (worker,) = server.client.describe(name)["workers"]
    asked = run("ready.py", name, *where(server))
    assert "no worker is ready; its workers are still loading" in asked.stderr
    assert run("scale.py", name, "1", *where(server)).returncode == 0
    assert [now["id"] for now in server.client.describe(name)["workers"]] == [worker["id"]]


def test_a_server_says_why_a_model_cannot_be_loaded(tmp_path: Path, other_config: Path) -> None:
    archive_of(tmp_path, "broken", "raise ValueError('the weights are missing')")
    other = Server(tmp_path, other_config, tmp_path, ["broken=broken.mar"])
    other.start()
    try:
        with pytest.raises(ServerError) as raised:
            other.wait(
                {"broken": lambda client: client.predict("broken", b"", timeout_s=1).status == 200}, 120, print
            )
        why = "broken cannot be loaded: ValueError: the weights are missing"
        assert str(raised.value) == f"{why} (all of it: {other.log})"
    finally:
        other.stop()


def test_serve_checks_serves_and_leaves_nothing_behind(
    tmp_path: Path, other_config: Path, config_maker: Callable[[Path], Path]
) -> None:
    program = [sys.executable, str(ROOT / "scripts" / "commands" / "serve.py")]
    (port,) = free_ports(1)
    command = [*program, "--port", str(port)]
    checked = subprocess.run(
        [*program, "--ts-config", str(other_config), "--check"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "all answers were right" in checked.stdout

    started = time.monotonic()
    with (tmp_path / "output").open("w+") as output:
        serving = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while "Serving until" not in (tmp_path / "output").read_text():
                assert serving.poll() is None, (tmp_path / "output").read_text()
                assert time.monotonic() - started < 60
                time.sleep(0.2)
            children = psutil.Process(serving.pid).children(recursive=True)
            assert len(children) >= 3  # TorchServe's wrapper, its Java, and its workers
            written = f"logs/serve-{port}.properties"
            output_text = (tmp_path / "output").read_text()
            assert f"http://127.0.0.1:{port}/predictions/digits" in output_text
            assert f"scripts/scale digits 2 --ts-config {written}" in output_text
            assert run("ready.py", "--ts-config", str(ROOT / written)).returncode == 0
            used = (ROOT / written).read_text()
            again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            assert (again.returncode, (ROOT / written).read_text()) == (1, used)  # the running server reads it
            assert f"another server runs in {ROOT}" in again.stderr
            second = [*program, "--ts-config", str(config_maker(tmp_path / "second.properties"))]
            refused = subprocess.run(second, capture_output=True, text=True, timeout=120, check=False)
            assert refused.returncode == 1
            assert f"another server runs in {ROOT}" in refused.stderr
            assert (ROOT / "key_file.json").is_file()
            os.kill(serving.pid, signal.SIGINT)
            assert serving.wait(timeout=120) == 0
        finally:
            serving.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_serve_serves_archives_of_ones_own(server: Server, tmp_path: Path, other_config: Path) -> None:
    """One of this project, and one that has another's handler, from a folder of their own."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "mine.mar").write_bytes((server.model_store / "digits.mar").read_bytes())
    archive_of(store, "foreign", "pass")
    files = (f"numbers={store / 'mine.mar'}", str(store / "foreign.mar"))
    done = run("serve.py", "--check", "--ts-config", str(other_config), *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"numbers answers after", done.stdout)
    assert re.search(r"^numbers: engine \w+, precision fp32", done.stdout, re.MULTILINE)
    assert "foreign: its handler is not of this project" in done.stdout


def test_serve_says_why_an_archive_of_ones_own_does_not_load(tmp_path: Path, other_config: Path) -> None:
    archive_of(tmp_path, "broken", "raise ValueError('the weights are missing')")
    done = run("serve.py", "--check", "--ts-config", str(other_config), str(tmp_path / "broken.mar"))
    assert done.returncode == 1
    assert "error: broken cannot be loaded: ValueError: the weights are missing (all of it: " in done.stderr
