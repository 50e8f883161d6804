"""One TorchServe per GPU: who gets which GPU and port, and nginx's text. tests/e2e/test_per_gpu_serves.py runs it."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import serve_per_gpu
from per_gpu import member, nginx, plan
from per_gpu.stack import Stack
from server.client import Client
from server.config import read_properties, write_changed
from server.errors import ServerError
from server.logs import Logs
from server.paths import CONFIG, ROOT
from server.ports import free_ports

from tests.e2e.programs import free_block, until
from tests.unit.test_deployment_files import scripts_module

KEY, FIRST = "k" * 43, 20000


def two(folder: Path, devices: tuple[str, ...] = ("0", "1"), first: int = FIRST) -> list[plan.Plan]:
    return plan.plans(devices, 2, first, folder)


def nginx_program() -> str:
    found = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), *serve_per_gpu.PROGRAMS]))
    if found is None:
        pytest.skip("needs nginx: on Debian and Ubuntu scripts/deployment/tools unpacks it")
    return found


@pytest.mark.parametrize(
    ("devices", "servers", "shares"),
    [
        (["0", "1"], None, [("0",), ("1",)]),
        (["2", "5", "6", "7"], 2, [("2", "5"), ("6", "7")]),
        (["GPU-8f2a", "MIG-11"], None, [("GPU-8f2a",), ("MIG-11",)]),
        (["3"], 1, [("3",)]),
        ([], 3, [None, None, None]),
    ],
)
def test_gpus_are_divided(devices: list[str], servers: int | None, shares: list[Any], tmp_path: Path) -> None:
    found = plan.plans(devices, servers, FIRST, tmp_path)
    assert [one.devices for one in found] == shares
    every = [port for one in found for port in one.ports.values()]
    assert len(set(every)) == len(every) == 7 * len(found)
    assert len({one.run_folder for one in found}) == len(found)


@pytest.mark.parametrize(
    ("devices", "servers", "first", "why"),
    [
        ([], None, FIRST, "sees no GPU"),
        (["0", "1", "2"], 2, FIRST, "3 GPUs cannot be divided evenly between 2 servers"),
        (["0"], 2, FIRST, "1 GPUs cannot be divided"),
        (["0", "1"], None, 65520, "need 20 ports from 65520"),
    ],
)
def test_what_cannot_be_is_refused(
    devices: list[str], servers: int | None, first: int, why: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=why):
        plan.plans(devices, servers, first, tmp_path)


def test_the_last_ports_are_usable(tmp_path: Path) -> None:
    assert max(plan.plans([], 2, 65516, tmp_path)[1].ports.values()) <= 65535


@pytest.mark.parametrize(
    ("named", "found"),
    [("0,1", ["0", "1"]), (" 3 , 1", ["3", "1"]), ("", []), ("-1", []), ("0,-1,1", ["0"]), ("GPU-a", ["GPU-a"])],
)
def test_gpus_that_are_visible(named: str, found: list[str]) -> None:
    assert plan.visible_devices({"CUDA_VISIBLE_DEVICES": named}) == found


def test_gpus_are_counted_by_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g: (UUID: MIG-1)\nGPU 1: NVIDIA H100 (UUID: GPU-2)\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=text))
    assert plan.visible_devices({}) == ["0", "1"]
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError()))
    assert plan.visible_devices({}) == []


def test_each_server_sees_its_gpu_only(tmp_path: Path) -> None:
    around = {"CUDA_VISIBLE_DEVICES": "0,1", "METRICS_ADDRESS": "http://0.0.0.0:8082", "JAVA_HEAP": "2g"}
    first, second = (one.environment(around, tmp_path, 20) for one in two(tmp_path))
    assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("0", "1")
    assert first["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "METRICS_ADDRESS" not in first
    assert (first["JAVA_HEAP"], first["STOP_SECONDS"]) == ("2g", "20")
    assert first["RUN_FOLDER"] != second["RUN_FOLDER"]
    assert plan.Plan(0, None, FIRST, tmp_path).environment({}, tmp_path, 20).keys().isdisjoint(
        {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"}
    )  # fmt: skip


def test_settings_are_those_of_config_properties(tmp_path: Path) -> None:
    """TorchServe would count all GPUs of the machine, and place workers on some that its process does not see."""
    before = read_properties(CONFIG)
    one = plan.Plan(1, ("3",), FIRST, tmp_path, "10.0.0.7")
    after = read_properties(write_changed(CONFIG, tmp_path / "config.properties", one.settings()))
    assert after.keys() - before.keys() == {"number_of_gpu"}
    assert after["number_of_gpu"] == "1"
    assert after["metrics_address"] == f"http://10.0.0.7:{FIRST + 2}"
    assert after["inference_address"] == f"http://127.0.0.1:{FIRST}"
    assert (after["grpc_inference_port"], after["grpc_management_port"]) == (str(FIRST + 3), str(FIRST + 4))
    assert "number_of_gpu" not in plan.Plan(1, None, FIRST, tmp_path).settings()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    found = two(tmp_path)
    with pytest.raises(ValueError, match=f"port {FIRST + 11} is for clients, and a server's"):
        plan.check_ports(found, "127.0.0.1", FIRST + 11)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"clients: port {port} of .* is taken"):
            plan.check_ports(found, "127.0.0.1", port)


def test_ports_that_linux_lends_are_told(tmp_path: Path) -> None:
    assert plan.lent(two(tmp_path), "32768\t60999\n") is None
    assert "ports 20016 to 60999" in str(plan.lent(two(tmp_path), "20016\t60999\n"))


@pytest.mark.parametrize("token", [None, "abcDEF12"])
def test_nginx_takes_the_text_of_a_server(token: str | None, tmp_path: Path) -> None:
    text = nginx.text(two(tmp_path)[1], KEY, token)
    assert "@REST" not in text
    assert "@TOKEN" not in text
    assert (f"server 127.0.0.1:{FIRST + 10} down;" in text) == (token is None)
    assert (KEY in text) == (token is not None)
    (tmp_path / "member.conf").write_text(text, encoding="utf-8")
    check_text(tmp_path, "member.conf")


def check_text(folder: Path, name: str) -> None:
    command = [nginx_program(), "-t", "-p", f"{folder}/", "-c", name, "-e", "stderr"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def front_text(folder: Path, *options: str) -> str:
    front = scripts_module("front")
    front.write_configuration(front.parser().parse_args([f"--folder={folder}", *options]))
    names = ("torchserve/http.conf", "torchserve/locations.conf", "torchserve/server.conf", "nginx.conf")
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def test_nginx_takes_the_text_of_several_servers(tmp_path: Path) -> None:
    options = ["--rest=127.0.0.1:9005,127.0.0.1:9015", "--grpc=127.0.0.1:9006,127.0.0.1:9016", "--host=127.0.0.1"]
    text = front_text(tmp_path, *options, "--processes=4", f"--port={free_ports(1)[0]}")
    for port in (9005, 9015, 9006, 9016):
        assert f"server 127.0.0.1:{port} max_fails=1 fail_timeout=2s;" in text
    assert text.count("least_conn;") == 2
    assert text.count("_next_upstream http_502 non_idempotent;") == 2
    assert "_next_upstream off;" not in text
    assert "worker_processes 4;" in text
    check_text(tmp_path, "nginx.conf")


def test_one_server_is_never_asked_twice(tmp_path: Path) -> None:
    text = front_text(tmp_path, f"--port={free_ports(1)[0]}")
    assert text.count("_next_upstream off;") == 2
    assert "least_conn" not in text
    check_text(tmp_path, "nginx.conf")


def test_the_front_gets_each_server_and_the_shared_key(tmp_path: Path) -> None:
    chosen = serve_per_gpu.parser().parse_args(["a=a.mar", "--servers=2", f"--folder={tmp_path}"])
    chosen.host, chosen.nginx = "127.0.0.1", "nginx"
    told: list[str] = []
    stack = Stack(chosen, two(tmp_path), {}, told.append)
    keys = stack.clients_keys()
    assert stack.clients_keys() == keys
    assert keys.read_text(encoding="utf-8").strip() not in " ".join(told)
    front = scripts_module("front")
    options = front.parser().parse_args(stack.front_command(keys)[2:])
    assert options.rest == f"127.0.0.1:{FIRST + 5},127.0.0.1:{FIRST + 15}"
    assert options.grpc == f"127.0.0.1:{FIRST + 6},127.0.0.1:{FIRST + 16}"
    (tmp_path / "front" / "torchserve").mkdir(parents=True)
    front.write_secrets(options)
    assert stack.key in (tmp_path / "front" / "torchserve" / "tokens.map").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["a.mar"], "NAME=FILE.mar is wanted"),
        (["a=missing.mar"], "NAME=FILE.mar is wanted"),
        (["a=a.mar", "--nginx=/nowhere/nginx"], "there is no nginx here"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], why: str, tmp_path: Path) -> None:
    (tmp_path / "a.mar").touch()
    chosen: argparse.Namespace = serve_per_gpu.parser().parse_args([*arguments, f"--model-store={tmp_path}"])
    with pytest.raises(ValueError, match=why):
        serve_per_gpu.check(chosen)


def test_deaths_in_short_succession_are_waited_for_longer() -> None:
    assert [member.delay_after(count) for count in (1, 2, 3, 6, 7, 50)] == [1, 2, 4, 32, 60, 60]


class Fake:
    """A process that has ended, or runs."""

    pid = 0

    def __init__(self, status: int | None) -> None:
        self.returncode = status

    def poll(self) -> int | None:
        return self.returncode


def made(folder: Path, told: list[str]) -> member.Member:
    one = two(folder)[0]
    found = member.Member(one, ["a=a.mar"], {}, CONFIG, nginx.MemberNginx(one, "nginx", KEY), told.append)
    one.folder.mkdir(parents=True)
    found.log.write_text("why it ended\n", encoding="utf-8")
    return found


def test_a_server_that_never_started_ends_all(tmp_path: Path) -> None:
    found = made(tmp_path, [])
    found.process = Fake(3)  # type: ignore[assignment]
    with pytest.raises(
        ServerError, match=r"(?s)server 0 \(GPU 0\) ended while it started, exit status 3.*why it ended"
    ):
        found.step()


def test_a_server_that_served_is_started_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    found, starts = made(tmp_path, told), list[float]()
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(member.Member, "start", lambda self: starts.append(now))
    monkeypatch.setattr(member.Member, "kill", lambda self: None)
    found.process, found.ready, found.ready_at = Fake(137), True, 900.0  # type: ignore[assignment]
    found.step()
    assert "it is started again in 1 s" in told[0]
    found.step()
    assert not starts
    now = 1001.5
    found.step()
    assert starts == [1001.5]


def test_a_server_is_ready_only_when_its_nginx_lets_requests_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload of nginx takes a moment; who asks then is told that the server is away."""
    told: list[str] = []
    found, shown, passing = made(tmp_path, told), list[str | None](), iter([False, False, True])
    found.process, found.slow_at, found.logs = Fake(None), math.inf, Logs(tmp_path)  # type: ignore[assignment]
    addresses = {"inference_address": "http://127.0.0.1:1", "metrics_address": "http://127.0.0.1:3"}
    monkeypatch.setattr(member.Member, "client", Client(tmp_path, addresses))
    monkeypatch.setattr(member.Member, "_serves", lambda self, client, name: True)
    monkeypatch.setattr(Client, "token", lambda self, kind: "a token")
    monkeypatch.setattr(nginx.MemberNginx, "show", lambda self, token: shown.append(token))
    monkeypatch.setattr(nginx.MemberNginx, "passes", lambda self: next(passing))
    ready = list[bool]()
    for _ in range(3):
        found.step()
        ready.append(found.ready)
    assert ready == [False, False, True]
    assert set(shown) == {"a token"}
    assert len(told) == 1


def test_the_nginx_of_a_server_starts_with_its_first_token(tmp_path: Path) -> None:
    one = plan.plans([], 1, free_block(plan.STEP), tmp_path)[0]
    front = nginx.MemberNginx(one, nginx_program(), KEY)
    with pings(one.ports["inference"]) as authorizations:
        front.show(None)
        assert front.process is None
        try:
            for token in ("first", "second"):
                front.show(token)
                until(partial(passes_with, token, front, authorizations), 10)
                front.show(None)
                until(lambda: not front.passes(), 10)
        finally:
            front.stop()


def passes_with(token: str, front: nginx.MemberNginx, authorizations: list[str]) -> bool:
    return passes(front) and authorizations[-1] == f"Bearer {token}"


def passes(front: nginx.MemberNginx) -> bool:
    try:
        return front.passes()
    except OSError:
        return False  # it has only just been started


@contextlib.contextmanager
def pings(port: int) -> Iterator[list[str]]:
    """A server that answers GET, and the tokens that it got."""
    got = list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            got.append(self.headers["Authorization"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_script_says_what_it_does() -> None:
    done = subprocess.run([str(ROOT / "scripts/deployment/per-gpu"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "minWorkers" in done.stdout
