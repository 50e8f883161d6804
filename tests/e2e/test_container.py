"""What runs in the image, without a container: start, JSON logs, nginx with clients' keys, a start after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import psutil
import pytest

from tests.e2e.programs import DEPLOYMENT, SAMPLES, Client, Server, free_ports, front, read_properties, until
from tests.e2e.test_tls import PREDICT, ask, label

pytestmark = pytest.mark.e2e

SEVEN = (SAMPLES / "seven.png").read_bytes()
LOGS = ("ts_log", "model_log", "access_log")
FIELDS = {"time", "level", "logger", "thread", "message", "exception"}


@dataclass
class Container:
    """The start script, in a folder that stands for the container's."""

    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "stdout").open("ab") as log:
            self.process = subprocess.Popen(
                [str(DEPLOYMENT / "start"), "digits=digits.mar"],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(self.answers, timeout_s=180)

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "stdout").read_text(errors="replace")[-2000:]
        try:
            return self.client.predict("digits", SEVEN).status == 200
        except (OSError, RuntimeError, ValueError):
            return False

    def kill(self, number: int) -> None:
        """Send a signal to process 1, as tini does, or SIGKILL to all processes, as the kernel does."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                (os.killpg if number == signal.SIGKILL else os.kill)(self.process.pid, number)
            self.process.wait(timeout=60)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def client(self) -> Client:
        return Client(self.run, read_properties(self.run / "config.properties"))

    def server(self, model_store: Path) -> Server:
        """For the front: where it runs, and its addresses."""
        return Server(self.run, self.run / "config.properties", model_store, [])


@pytest.fixture(scope="module")
def container(
    model_store: Path, config_maker: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    folder = tmp_path_factory.mktemp("container")
    config = config_maker(folder / "config.properties")
    metrics = read_properties(config)["metrics_address"].replace("127.0.0.1", "0.0.0.0")  # noqa: S104, as in the image
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TMPDIR")},
        "RUN_FOLDER": str(folder / "run"),
        "MODEL_STORE": str(model_store),
        "TS_CONFIG": str(config),
        "JAVA_HEAP": "600m",
        "TOKEN_MINUTES": "525600",
        "METRICS_ADDRESS": metrics,
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    running = Container(folder, environment)
    try:
        running.start()
        yield running
    finally:
        running.kill(signal.SIGKILL)


def lines(container: Container, log: str) -> list[dict[str, Any]]:
    text = (container.run / "logs" / f"{log}.log").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def send_raw(client: Client, head: str) -> None:
    parsed = urlparse(client.inference)
    with socket.create_connection((parsed.hostname, parsed.port or 80), timeout=30) as connection:
        connection.sendall(head.encode())
        connection.recv(1 << 16)


def test_settings_of_the_container_arrive(container: Container, model_store: Path) -> None:
    config = read_properties(container.run / "config.properties")
    assert (config["token_expiration_min"], config["model_store"]) == ("525600", str(model_store))
    assert "-Xmx600m" in config["vmargs"]
    shown = {urlparse(config[key]).hostname for key in ("inference_address", "management_address")}
    assert shown == {"127.0.0.1"}
    assert config["grpc_management_address"] == "127.0.0.1"
    assert urlparse(config["metrics_address"]).hostname == "0.0.0.0"  # noqa: S104, what the image sets
    assert (container.run / "key_file.json").stat().st_mode & 0o077 == 0
    assert list((container.folder / "cache").rglob("*")), "what was measured is kept there"


def test_management_listens_on_loopback_only(container: Container) -> None:
    assert container.process is not None
    ours = [container.process.pid, *(child.pid for child in psutil.Process(container.process.pid).children(True))]
    open_ports = {
        found.laddr.port
        for found in psutil.net_connections("tcp")
        if found.laddr
        and found.pid in ours
        and found.status == psutil.CONN_LISTEN
        and not found.laddr.ip.endswith("127.0.0.1")
    }
    assert open_ports == {urlparse(container.client.config["metrics_address"]).port}


def test_each_line_of_each_log_is_json(container: Container) -> None:
    client = container.client
    client.predict("digits", SEVEN)
    client.predict("digits", b"no image, and longer than an option is " * 9)
    client.manage("POST", "/models", {"url": "missing.mar", "model_name": "missing"})
    token = client.token("inference")
    client.predict("digits", SEVEN, path="?planted=words&more=words")
    send_raw(client, f'GET /predictions/a"b\\c HTTP/1.1\r\nAuthorization: Bearer {token}\r\nHost: x\r\n\r\n')
    until(lambda: any("/predictions/a" in line["message"] for line in lines(container, "access_log")))
    found = {log: lines(container, log) for log in LOGS}
    assert all(line.keys() == FIELDS for log in LOGS for line in found[log])
    assert all(re.fullmatch(r"[\d-]+T[\d:.]+(Z|[+-]\d\d:\d\d)", line["time"]) for log in LOGS for line in found[log])
    assert any("precision fp32" in line["message"] for line in found["model_log"])
    assert any('"POST /predictions/digits HTTP/1.1" 200' in line["message"] for line in found["access_log"])
    assert "planted" not in json.dumps(found)
    assert "planted" not in (container.folder / "stdout").read_text(encoding="utf-8")


def test_the_console_is_json_too_but_for_what_java_and_torchserve_print_before(container: Container) -> None:
    text = (container.folder / "stdout").read_text(encoding="utf-8").splitlines()
    plain = [line for line in text if not line.startswith("{")]
    assert len(plain) < 10
    assert all(json.loads(line).keys() == FIELDS for line in text if line.startswith("{"))


def test_a_container_that_was_killed_starts_again(container: Container, model_store: Path, tmp_path: Path) -> None:
    """Behind nginx, which takes the new token by itself. An old process number in use again changes nothing."""
    key, keys = secrets.token_urlsafe(32), tmp_path / "keys"
    keys.write_text(key, encoding="utf-8")
    with front(container.server(model_store), tmp_path, "--keys", str(keys)) as proxy:
        assert label(ask(proxy, PREDICT, key)) == "7"
        before = container.client.token("inference")
        container.kill(signal.SIGKILL)
        status, answer, headers = ask(proxy, PREDICT, key)
        assert (status, json.loads(answer)["type"], headers["retry-after"]) == (502, "ServerAway", "5")
        left = container.run / "tmp" / ".model_server.pid"
        assert left.exists()
        left.write_text(str(os.getpid()), encoding="utf-8")
        container.start()
        assert container.client.token("inference") != before
        until(lambda: ask(proxy, PREDICT, key)[0] == 200)


def test_a_stack_trace_is_one_field(container: Container) -> None:
    (worker,) = container.client.describe("digits")["workers"]
    os.kill(worker["pid"], signal.SIGKILL)
    until(lambda: any("\n" in line["exception"] for line in lines(container, "ts_log")))


def test_drain_waits_for_nginx_and_then_torchserve_ends_in_time(
    container: Container, model_store: Path, tmp_path: Path
) -> None:
    with front(container.server(model_store), tmp_path) as proxy:
        environment = {**os.environ, "NGINX_FOLDER": str(proxy.folder / "nginx")}
        draining = subprocess.Popen([str(DEPLOYMENT / "drain"), "60"], env=environment)
        time.sleep(1.5)
        assert draining.poll() is None
        proxy.process.send_signal(signal.SIGTERM)
        assert draining.wait(timeout=20) == 0
    assert container.process is not None
    started = time.monotonic()
    container.kill(signal.SIGTERM)
    assert time.monotonic() - started < 20
    children = [one for one in psutil.process_iter() if same_group(one.pid, container.process.pid)]
    until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children))


def same_group(process: int, group: int) -> bool:
    try:
        return os.getpgid(process) == group
    except ProcessLookupError:
        return False


def test_an_error_names_what_is_missing(tmp_path: Path) -> None:
    for environment, wanted in (({}, "RUN_FOLDER"), ({"RUN_FOLDER": str(tmp_path)}, "MODEL_STORE")):
        done = subprocess.run(
            [str(DEPLOYMENT / "start"), "a=a.mar"],
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
        )
        assert done.returncode != 0
        assert wanted in done.stderr.decode()


def test_a_key_that_is_too_short_keeps_nginx_from_starting(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("too-short-a-key", encoding="utf-8")
    (tmp_path / "key_file.json").write_text('{"inference": {"key": "abc"}}', encoding="utf-8")
    command = [sys.executable, str(DEPLOYMENT / "front.py"), "--folder", str(tmp_path / "nginx")]
    command += ["--torchserve", str(tmp_path), "--keys", str(tmp_path / "keys"), "--port", str(free_ports(1)[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert "key 1 of 1" in done.stderr
    assert "too-short" not in done.stderr
