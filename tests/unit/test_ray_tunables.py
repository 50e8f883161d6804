"""What scripts/serve-ray sets of Ray Serve's settings, and HAProxy's own addresses; without Ray."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from ray_host import door, error_pages, leftovers, tunables

CONFIG = """global
    log 127.0.0.1:514 local0 info
    log /tmp/metrics.sock local0 debug
defaults
    mode http
    errorfile 502 /tmp/x/500.http
    errorfile 503 /tmp/x/500.http
    errorfile 504 /tmp/x/500.http
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8080
    use_backend b if is_b
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \\'%[path]\\' not found."
backend b
    server one 127.0.0.1:30000 check
frontend grpc_frontend
    bind 127.0.0.1:9000 proto h2
    use_backend grpc_fallback_backend if is_list_applications
backend grpc-b
    server two 127.0.0.1:30001 proto h2
listen stats
  bind *:8404
"""


def program(folder: Path, body: str = "exit 0") -> Path:
    made = folder / "real-haproxy"
    made.write_text(f"#!/bin/sh\n{body}\n")
    made.chmod(0o755)
    return made


def test_haproxy_reads_the_requests_if_it_runs(tmp_path: Path) -> None:
    environment = {tunables.BINARY: str(program(tmp_path))}
    assert tunables.choose(environment, "10.0.0.1") is None
    assert tunables.is_haproxy(environment)
    assert environment["RAY_SERVE_ENABLE_DIRECT_INGRESS"] == "1"
    assert environment[tunables.BINARY] == str(tunables.OWN_HAPROXY)
    assert environment[tunables.PROGRAM] == str(tmp_path / "real-haproxy")
    assert environment[tunables.HOST] == "10.0.0.1"
    folder = Path(environment[tunables.FOLDER])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(str(folder)) <= leftovers.LONGEST_FOLDER
    assert Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent == folder
    tunables.forget(environment)
    assert not folder.exists()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 30])
def test_haproxy_takes_the_sockets_paths_below_any_tmpdir(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray puts the sockets into a folder of 56 hex digits. HAProxy takes 97 characters for a log's socket."""
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as short:
        parent = Path(short) / ("x" * length)
        parent.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(parent))
        environment = {tunables.BINARY: str(program(tmp_path))}
        tunables.choose(environment, "127.0.0.1")
        metrics = Path(environment["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"])
        tunables.forget(environment)
    assert len(str(metrics.parent / ("0" * 56) / metrics.name)) <= 97


def test_what_a_user_has_set_stays(tmp_path: Path) -> None:
    given = {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0",
        "RAY_SERVE_HAPROXY_STATS_PORT": "7000",
        tunables.BINARY: str(program(tmp_path)),
    }
    environment = dict(given)
    tunables.choose(environment, "127.0.0.1")
    tunables.forget(environment)
    assert environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "0"
    assert environment["RAY_SERVE_HAPROXY_STATS_PORT"] == "7000"


@pytest.mark.parametrize(
    ("given", "body", "told"),
    [
        ({tunables.HA_PROXY: "0"}, "exit 0", "RAY_SERVE_ENABLE_HA_PROXY is 0"),
        ({}, "exit 1", "does not run: CalledProcessError"),
    ],
)
def test_why_haproxy_does_not_read_them(given: dict[str, str], body: str, told: str, tmp_path: Path) -> None:
    environment = {**given, tunables.BINARY: str(program(tmp_path, body))}
    reason = tunables.choose(environment, "127.0.0.1")
    assert reason is not None
    assert told in reason
    assert not tunables.is_haproxy(environment)
    assert environment["RAY_SERVE_ENABLE_DIRECT_INGRESS"] == "0"
    tunables.forget(environment)


def test_a_second_choice_takes_the_same_program(tmp_path: Path) -> None:
    environment = {tunables.BINARY: str(program(tmp_path))}
    sockets = set()
    for _ in range(2):
        assert tunables.choose(environment, "127.0.0.1") is None
        sockets.add(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"])
        tunables.forget(environment)
    assert len(sockets) == 2
    assert environment[tunables.PROGRAM] == str(tmp_path / "real-haproxy")


NO_APPLICATION = CONFIG.replace("    use_backend b if is_b\n", "")
ON_A_CLUSTER = CONFIG.replace("bind 127.0.0.1:", "bind *:")


def edited(folder: Path, host: str | None, written: str = CONFIG) -> list[str]:
    """The lines of a configuration after HAProxy was called with it, without indentation."""
    config = folder / "haproxy.cfg"
    config.write_text(written)
    environment = {
        "PATH": "/usr/bin:/bin",
        tunables.PROGRAM: str(program(folder, 'echo "$@"')),
        tunables.ERRORS: str(error_pages.write(folder / "errors")),
        door.TOKEN: "7e57",
        **({} if host is None else {tunables.HOST: host}),
    }
    command = [str(tunables.OWN_HAPROXY), "-db", "-f", str(config), "-sf", "7"]
    told = [subprocess.run(command, env=environment, check=True, capture_output=True, text=True) for _ in range(2)]
    # Ray finds its HAProxys by the name of this file.
    assert [each.stdout for each in told] == [f"-db -f {config} -sf 7\n"] * 2
    return [line.strip() for line in config.read_text().splitlines()]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "192.0.2.7", "::"])  # noqa: S104 - nothing listens
def test_only_requests_come_to_the_address_that_is_asked_for(host: str, tmp_path: Path) -> None:
    lines = edited(tmp_path, host)
    assert [line for line in lines if line.startswith("bind") and "unix@" not in line] == [
        "bind 127.0.0.1:9101",
        f"bind {host}:9000 proto h2",
        "bind 127.0.0.1:8404",
        f"bind {host}:8080",
    ]
    assert [line for line in lines if line.startswith("log")] == ["log /tmp/metrics.sock local0 debug"]
    assert "server one 127.0.0.1:30000 check" in lines


def test_on_a_cluster_requests_come_to_all_addresses_and_figures_to_the_own_machine(tmp_path: Path) -> None:
    lines = edited(tmp_path, None, ON_A_CLUSTER)
    assert section(lines, "frontend prometheus") == ["bind 127.0.0.1:9101"]
    assert section(lines, "listen stats") == ["bind 127.0.0.1:8404"]
    assert "bind *:9000 proto h2" in section(lines, "frontend grpc_frontend")
    assert "bind *:8080" in section(lines, "frontend http_clients")
    assert [line for line in lines if line.startswith("log")] == [
        line.strip() for line in CONFIG.splitlines() if line.strip().startswith("log")
    ]


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
@pytest.mark.parametrize(("written", "status"), [(CONFIG, 404), (NO_APPLICATION, 503)])
def test_a_path_that_no_application_has(written: str, status: int, host: str | None, tmp_path: Path) -> None:
    lines = edited(tmp_path, host, written)
    assert section(lines, "backend default_backend") == [f"http-request return status {status} default-errorfiles"]


def test_clients_have_a_frontend_of_their_own(tmp_path: Path) -> None:
    lines = edited(tmp_path, "127.0.0.1")
    socket, token = f"unix@{tmp_path}/http.sock", "http-request set-header x-serve-ray-token 7e57"
    alone = ["http-reuse never", "option http-server-close", "retry-on conn-failure"]
    ways = ["use_backend b if is_b", "default_backend default_backend"]
    assert section(lines, "frontend http_frontend") == [f"bind {socket} mode 600", token, *ways]
    assert section(lines, "frontend http_clients") == ["bind 127.0.0.1:8080", "default_backend http_inside"]
    assert section(lines, "backend http_inside") == [*alone, f"server inside {socket}"]
    assert section(lines, "frontend grpc_frontend") == [
        "errorfiles serve-ray-grpc",
        "bind 127.0.0.1:9000 proto h2",
        token,
        "use_backend grpc_fallback_backend if is_list_applications",
    ]


def section(lines: list[str], title: str) -> list[str]:
    """The lines of a section of HAProxy's configuration."""
    first = lines.index(title) + 1
    titles = ("frontend", "backend", "listen", "http-errors", "defaults", "global")
    return list(itertools.takewhile(lambda line: line.partition(" ")[0] not in titles, lines[first:]))


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
def test_haproxys_errors_are_those_of_the_fronts(host: str | None, tmp_path: Path) -> None:
    lines = edited(tmp_path, host)
    assert lines.index("global") < lines.index("http-errors serve-ray") < lines.index("defaults")
    assert not [line for line in lines if "x/500.http" in line]
    assert "errorfiles serve-ray" in section(lines, "defaults")
    assert "errorfiles serve-ray-grpc" in section(lines, "backend grpc-b")
    assert "errorfiles serve-ray-grpc" not in section(lines, "backend b")


def test_a_folder_that_ray_makes_again_does_not_stay(tmp_path: Path) -> None:
    """Ray's manager of HAProxy lives on for some seconds, and writes there."""
    folder = tmp_path / "mine"
    code = "import pathlib\nwhile True: pathlib.Path('mine', 'id').mkdir(parents=True, exist_ok=True)"
    environment = {**os.environ, tunables.FOLDER: str(folder)}
    manager = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    try:
        deadline = time.monotonic() + 10
        while not folder.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        tunables.forget({tunables.FOLDER: str(folder)})
        assert not psutil.pid_exists(manager.pid)
        assert not folder.exists()
    finally:
        manager.kill()
        manager.wait()


def test_two_rays_do_not_share_the_port_of_their_own_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """HAProxy asks it if no front is left; the other Ray would answer."""
    monkeypatch.setattr(tunables, "_objection", lambda _: None)
    one: dict[str, str] = {}
    other: dict[str, str] = {}
    for environment in (one, other):
        tunables.choose(environment, "127.0.0.1")
        assert environment["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] not in ("8500", "")
    assert one["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] != other["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"]
    assert one[door.TOKEN] != other[door.TOKEN]
    for environment in (one, other):
        tunables.forget(environment)
        assert "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT" not in environment
