"""Several GPUs and several servers in scripts/bench_serving, with servers, GPUs and MPS of the test's own."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import bench_serving
import psutil
import pytest
from ray_host.options import fronts_for
from server import mps
from server.config import config_on_free_ports, read_properties
from server.errors import ServerError
from server.gpus import DEVICES
from serving_bench import command, environment, fleet, layouts, page, reference_answers, report, scaling, sweep
from serving_bench.fleet import Fleet
from serving_bench.generator import Endpoint, Generator, GeneratorError, Load, together
from serving_bench.layouts import Layout
from serving_bench.measure import Bench, Setting
from serving_bench.peers import Start, ray_serve
from serving_bench.plan import Plan, why_not_on
from serving_bench.resource_usage import GpuMonitor, GpuSample
from serving_bench.rows import line_of, troubles
from serving_bench.stream_generator import StreamGenerator
from serving_bench.temporary_server import TemporaryServer
from serving_bench.wrk_generator import WrkGenerator, threads_for

from handlers.mps import PIPES

TWO = Load("two bodies", [b"one", b"three"], {"Content-Type": "text/plain"}, "texts", 3)
COMMANDS = str(Path(bench_serving.__file__).parent)


class Echo(ThreadingHTTPServer):
    """Answers with the request's body, if it comes with this server's own token and address."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        self.requests = self.refused = 0
        self.answer: bytes | None = None
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def endpoint(self) -> Endpoint:
        url = f"http://127.0.0.1:{self.server_port}/predictions/echo?port={self.server_port}"
        return Endpoint(url, {"Authorization": f"Bearer {self.server_port}"})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Echo

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        port = str(self.server.server_port)
        own = self.headers["Authorization"] == f"Bearer {port}" and self.path.endswith(f"port={port}")
        own = own and self.headers["Host"] == f"127.0.0.1:{port}"
        self.server.requests += 1
        self.server.refused += not own
        answer = self.server.answer or body
        self.send_response(200 if own else 403)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()


@pytest.fixture
def servers() -> Iterator[list[Echo]]:
    found = [Echo() for _ in range(3)]
    for server in found:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    for server in found:
        server.shutdown()
        server.server_close()


@pytest.fixture(
    params=["streams", pytest.param("wrk", marks=pytest.mark.skipif(not shutil.which("wrk"), reason="no wrk"))]
)
def generator(request: pytest.FixtureRequest) -> Generator:
    return StreamGenerator(2) if request.param == "streams" else WrkGenerator("wrk", 2)


def test_a_closed_loop_asks_every_server_with_its_own_token(servers: list[Echo], generator: Generator) -> None:
    found = generator.closed(together([server.endpoint for server in servers]), TWO, 6, 1)
    assert found.errors == 0
    assert sum(server.refused for server in servers) == 0
    assert min(server.requests for server in servers) > 0
    assert sum(server.requests for server in servers) >= found.answered
    assert found.threads == (3 if found.generator.startswith("wrk") else 2)


def test_an_open_loop_sends_each_server_as_many_requests(servers: list[Echo]) -> None:
    found = StreamGenerator(2).open(together([server.endpoint for server in servers]), TWO, 150, 64, 2)
    counts = [server.requests for server in servers]
    assert found.errors == sum(server.refused for server in servers) == 0
    assert max(counts) - min(counts) < 0.2 * sum(counts), counts


def test_a_server_that_does_not_listen_is_said(servers: list[Echo], generator: Generator) -> None:
    with pytest.raises(GeneratorError):
        generator.closed(together([servers[0].endpoint, Endpoint("http://127.0.0.1:9/x", {})]), TWO, 2, 1)


@pytest.mark.parametrize(
    ("clients", "most", "count", "threads"),
    [(16, 4, 2, 4), (16, 1, 4, 4), (12, 5, 2, 4), (6, 5, 3, 3), (4, 16, 4, 4)],
)
def test_wrks_threads_are_a_multiple_of_the_servers(clients: int, most: int, count: int, threads: int) -> None:
    assert threads_for(clients, most, count) == threads
    with pytest.raises(GeneratorError, match="cannot be spread evenly"):
        threads_for(count * 3 + 1, most, count)


def test_wrong_answers_of_any_server_are_found(servers: list[Echo]) -> None:
    endpoint = together([server.endpoint for server in servers])
    reference = reference_answers.ask(endpoint, TWO)
    servers[2].answer = b"other"
    checker = reference_answers.AnswerChecker(endpoint, TWO, reference)
    checker.once()
    assert (checker.right, len(checker.wrong)) == (4, 2)


# --- layouts ---


def test_layouts_in_all_combinations_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEVICES, raising=False)
    found = layouts.layouts([1, 2, 4], ["one", "per-gpu"], [False, True], 4)
    assert [(one.gpus, one.servers, one.mps) for one in found] == [
        *((1, 1, False), (1, 1, True)),
        *((2, 1, False), (2, 1, True), (2, 2, False), (2, 2, True)),
        *((4, 1, False), (4, 1, True), (4, 4, False), (4, 4, True)),
    ]
    assert {one.first for one in found} == {(1, 1)}
    assert found[-1].shares == [(0,), (1,), (2,), (3,)]
    assert Layout((0, 1, 2, 3), 2).shares == [(0, 1), (2, 3)]
    assert str(found[-1]) == "4 GPUs, 4 servers, MPS on"
    assert layouts.layouts(None, ["one"], [None], 4) == [Layout()]  # as it was before there were layouts
    assert Layout().columns() == {"gpus": None, "servers": None, "mps": None}
    assert [one.servers for one in layouts.layouts(None, ["one", "2"], [None], 0)] == [1, 2]
    assert layouts.layouts(None, ["per-gpu"], [None], 2)[0].shares == [(0,), (1,)]


def test_only_visible_gpus_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICES, "2,5")
    (found,) = layouts.layouts([2], ["per-gpu"], [None], 8)
    assert [layouts.environment_of(share)[DEVICES] for share in found.shares] == ["2", "5"]
    monkeypatch.setenv(DEVICES, "GPU-1234")
    with pytest.raises(ValueError, match="has to hold numbers"):
        layouts.layouts([1], ["one"], [None], 8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "1,8"], "8 GPUs are asked for, and 4 are here"),
        (["--gpus", "4", "--servers", "3"], "4 GPUs cannot be divided between 3 servers"),
        (["--servers", "2", "--workers", "1"], "--workers 1 cannot be divided evenly between 2 servers"),
        (["--servers", "2", "--workers", "2", "--clients", "1"], "--clients 1 cannot be divided evenly"),
        (["--mps", "on"], "there is no nvidia-cuda-mps-control on the PATH"),
    ],
)
def test_what_cannot_be_is_said_before_the_start(
    arguments: list[str],
    said: str,
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(DEVICES, raising=False)
    monkeypatch.setattr(command, "gpu_names", lambda: ["a GPU"] * 4)
    monkeypatch.setattr("server.mps.shutil.which", lambda _: None)
    load = ("--body", str(archive), "--content-type", "text/plain")
    assert bench_serving.main([str(archive), *load, *arguments]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "0"], "whole numbers from 1"),
        (["--servers", "two"], "wanted: one, per-gpu"),
        (["--mps", "yes"], "wanted: off, on"),
    ],
)
def test_the_command_line_refuses(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_serving.main(arguments)
    assert said in capsys.readouterr().err


def test_layouts_are_not_for_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_serving.main(["--address", "http://127.0.0.1:9/x", "--size", "8x8", "--gpus", "1"]) == 1
    assert "not for --address" in capsys.readouterr().err


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    from serving_bench import archives

    return archives.make_noop(tmp_path, "noop", 1).file


# --- a fleet of servers that are made up ---


class FakeServer(TemporaryServer):
    """Keeps what it is told. Its workers go round the GPUs, as TorchServe's do."""

    log: list[tuple[str, Any]]

    def start(self) -> None:
        self.log = [("start", dict(self.settings))]

    def wait(self) -> None:
        self.log.append(("wait", None))
        if self.settings.get("fails"):
            raise ServerError("it did not start")

    def __exit__(self, *_: object) -> None:
        self.log.append(("end", None))

    @property
    def client(self) -> Any:
        return self

    def set_workers(self, model: str, workers: int) -> None:
        self.log.append(("ask", workers))

    def scale(self, model: str, workers: int, report: Any = None) -> None:
        self.log.append(("scale", workers))
        self.workers = workers

    def describe(self, model: str) -> dict[str, Any]:
        there = int(self.settings["number_of_gpu"])
        usage = "gpuId::{} utilization.gpu [%]::7 %utilization.memory [%]::0 %memory.used [MiB]::11 MiB"
        return {"workers": [{"gpu": True, "gpuUsage": usage.format(at % there)} for at in range(self.workers)]}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "TemporaryServer", FakeServer)


def of(found: Fleet) -> list[Any]:
    return found.servers


@pytest.mark.usefixtures("fakes")
def test_a_fleet_divides_gpus_and_workers() -> None:
    with Fleet(Layout((0, 1, 2, 3), 2), {"job_queue_size": "9"}, {"KEY": "value"}) as found:
        assert [server.environment[DEVICES] for server in of(found)] == ["0,1", "2,3"]
        assert {server.environment["KEY"] for server in of(found)} == {"value"}
        assert {server.settings["number_of_gpu"] for server in of(found)} == {"2"}
        assert {server.settings["job_queue_size"] for server in of(found)} == {"9"}
        ports = [server.settings["inference_address"] for server in of(found)]
        assert len(set(ports)) == 2
        found.scale("model", 8)
        # All are asked before any is waited for, so that they load at the same time.
        assert [server.log[2:4] for server in of(found)] == [[("ask", 4), ("scale", 4)]] * 2
        assert found.workers_per_gpu("model") == [2, 2, 2, 2]
    assert all(server.log[-1] == ("end", None) for server in of(found))


@pytest.mark.usefixtures("fakes")
def test_a_fleet_that_does_not_start_ends_what_has_started() -> None:
    found = Fleet(Layout(None, 2), {"fails": "yes"}, {})
    with pytest.raises(ServerError), found:
        pass
    assert [server.log[-1] for server in of(found)] == [("end", None)] * 2


@pytest.mark.usefixtures("fakes")
def test_workers_on_gpus_are_unknown_if_torchserve_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    unread = {"workers": [{"gpu": True, "gpuUsage": "failed to obtained gpu usage"}] * 4}
    monkeypatch.setattr(FakeServer, "describe", lambda *_: unread)
    with Fleet(Layout((0, 1), 1), {}, {}) as found:
        assert found.workers_per_gpu("model") is None
    with Fleet(Layout((0, 1), 2), {}, {}) as found:  # each server has one GPU only
        assert found.workers_per_gpu("model") == [4, 4]
    with Fleet(Layout(), {}, {}) as found:
        assert found.workers_per_gpu("model") is None


def test_metrics_are_summed_and_the_gauge_is_not() -> None:
    parts = [{"BatchSize_sum": 4.0, "HandlerTime": 10.0}, {"BatchSize_sum": 6.0, "HandlerTime": 20.0}, {}]
    assert fleet.summed(parts) == {"BatchSize_sum": 10.0, "HandlerTime": 15.0}


def test_servers_of_one_fleet_have_ports_of_their_own(tmp_path: Path) -> None:
    found = Fleet(Layout(None, 4), {}, {})
    configs = [config_on_free_ports(tmp_path / str(at), one.settings) for at, one in enumerate(found.servers)]
    keys = ("inference_address", "management_address", "metrics_address", "grpc_inference_port")
    values = [read_properties(config)[key] for config in configs for key in keys]
    assert len(set(values)) == len(values)


# --- the sweep ---


def bench(show: Callable[[str], None] = lambda _: None) -> Bench:
    return Bench(StreamGenerator(1), StreamGenerator(1), GpuMonitor(), 1, 1, show, lambda _: None)


def test_a_workers_gpu_memory_counts_from_before_the_first_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of the model before still hold memory when the next model is registered."""
    where, used = bench(), iter([100.0, 500.0, 900.0])
    monkeypatch.setattr(where.gpus, "memory_mib", lambda: next(used, None))
    where.note_idle_memory()
    assert where.mib_per_worker(4) == 100
    assert where.mib_per_worker(2) == 400
    assert where.mib_per_worker(2) is None, "nvidia-smi has ended"


PLAN = Plan([2], [8], [None], [None], [], True, ["stock", "ray", "litserve"])


def test_workers_clients_and_peers_of_each_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEVICES, raising=False)
    seen: list[Any] = []

    class Nothing:
        def __init__(self, layout: Layout, settings: object, environment: object) -> None:
            if layout.gpus == 2 and layout.servers == 2:
                raise ServerError("no memory left")

        def __enter__(self) -> object:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def run(where: Bench, server: object, plan: Plan, loads: object, around: object) -> dict[str, Any]:
        seen.append((where.layout.gpus, where.layout.servers, plan.workers, plan.clients, list(plan.peers)))
        where.noop["x", 1] = 1.0
        return {"a": {"gpus": where.layout.gpus}}

    monkeypatch.setattr(sweep, "Fleet", Nothing)
    monkeypatch.setattr(sweep, "run", run)
    where = bench()
    about = sweep.run_layouts(where, layouts.layouts([1, 2, 4], ["one", "per-gpu"], [None], 4), {}, PLAN, [])
    assert seen == [
        (1, 1, [2], [8], ["stock", "ray", "litserve"]),
        (2, 1, [4], [16], ["stock", "ray", "litserve"]),
        (4, 1, [8], [32], ["stock", "ray", "litserve"]),
        (4, 4, [8], [32], ["stock"]),
    ]
    assert where.skipped == [{"name": "2 GPUs, 2 servers", "reason": "no memory left"}]
    assert about == {"a": {"gpus": 1}}
    assert "one GPU only" in str(why_not_on("litserve", Layout((0, 1))))
    assert why_not_on("ray", Layout((0, 1))) is None


def test_the_no_op_is_measured_again_for_another_layout_but_not_for_mps() -> None:
    where = bench()
    where.use(Layout((0,), mps=False))
    where.noop["x", 1] = 1.0
    where.use(Layout((0,), mps=True))
    assert where.noop
    where.use(Layout((0, 1), mps=True))
    assert not where.noop
    assert where.gpus.only == (0, 1)


@pytest.mark.parametrize(
    ("layout", "cores", "workers"),
    [
        (Layout(), 16, 4),
        (Layout(), 2, 1),
        (Layout(None, 2), 2, 2),
        (Layout((0, 1, 2, 3)), 64, 16),
        (Layout((0, 1, 2, 3), 4), 16, 8),
        (Layout((0, 1, 2, 3)), 4, 4),
    ],
)
def test_workers_of_the_no_op(layout: Layout, cores: int, workers: int) -> None:
    assert sweep.noop_workers(layout, cores) == workers


def test_gpu_figures_are_those_of_the_gpus_in_use() -> None:
    gpus = GpuMonitor([GpuSample(1.0, index, index / 10, 100.0 * index) for index in range(4)])
    gpus.only = (1, 2)
    assert gpus.between(0, 2) == {1: (0.1, 100.0), 2: (0.2, 200.0)}


# --- rows ---

BASE = {
    "target": "bert",
    "kind": "archive",
    "load": "x",
    "loop": "closed",
    "batch_size": 8,
    "max_batch_delay_ms": 5,
    "mps": "on",
    "gpus": 1,
    "servers": 1,
    "workers": 2,
    "clients": 8,
    "items_per_s": 100.0,
}


def row(**changes: Any) -> dict[str, Any]:
    return {**BASE, **changes}


def test_share_of_linear() -> None:
    four = row(gpus=4, servers=4, workers=8, clients=32, items_per_s=360.0)
    rows = [row(), row(mps="off", items_per_s=1.0), row(clients=16, items_per_s=1.0), row(load="y", items_per_s=1.0)]
    assert scaling.share_of_linear(four, rows, (1, 1)) == pytest.approx(0.9)
    assert scaling.share_of_linear(row(), [], (1, 1)) == 1.0
    assert scaling.share_of_linear(four, rows, None) is None
    assert scaling.share_of_linear({**four, "loop": "open"}, rows, (1, 1)) is None
    assert (
        scaling.share_of_linear({**four, "workers": 12}, rows, (1, 1)) is None
    )  # three per GPU: not measured with one
    assert scaling.share_of_linear(four, [row(items_per_s=0.0)], (1, 1)) is None
    two = [
        row(gpus=2, servers=servers, workers=4, clients=16, items_per_s=rate) for servers, rate in ((1, 9), (2, 180))
    ]
    assert scaling.share_of_linear(four, two, (2, 2)) == pytest.approx(1.0)


def test_share_of_linear_of_a_no_op_takes_any_number_of_workers() -> None:
    one, four = row(kind="no-op", workers=4), row(kind="no-op", gpus=4, workers=8, clients=32, items_per_s=200.0)
    assert scaling.share_of_linear(four, [one], (1, 1)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, "?"),
        ({"gpu_busy": [0.97, 0.95]}, "GPU"),
        ({"gpu_busy": [0.97, 0.5]}, "?"),
        ({"headroom": 1.1}, "front end"),
        ({"headroom": 1.1, "cores": {"java": 1.0, "generator": 3.9}}, "load generator"),
        ({"cores": {"java": 6.0, "workers": 7.0, "generator": 2.0}, "gpu_busy": [0.91]}, "CPU, GPU"),
        ({"loop": "open"}, None),
    ],
)
def test_what_is_at_its_limit(changes: dict[str, Any], found: str | None) -> None:
    told = {"loop": "closed", "gpu_busy": [], "headroom": 3.0, "cores": {"java": 1.0, "generator": 1.0}}
    assert scaling.limited_by({**told, **changes}, 16, 4) == found


class Subject:
    """The test's servers as what is measured."""

    kind, name = "archive", "echo"

    def __init__(self, where: Endpoint) -> None:
        self.where = where

    def endpoint(self) -> Endpoint:
        return self.where

    def groups(self) -> dict[str, list[psutil.Process]]:
        return {"java": [psutil.Process()], "workers": []}

    def metrics(self) -> Mapping[str, float]:
        return {}


def test_rows_tables_and_page_name_layouts_if_there_are_any(servers: list[Echo], tmp_path: Path) -> None:
    where = bench()
    endpoint = together([server.endpoint for server in servers[:2]])
    reference = reference_answers.ask(endpoint, TWO)
    about = {
        "conditions": environment.environment("abc") | {"generator": "g", "open_loop": "o"},
        "archives": {"a": {}},
    }
    where.closed(Subject(endpoint), TWO, reference, Setting(2, 8, 5), 4)
    plain = report.document(where, about)
    report.write(tmp_path / "plain", plain)
    with (tmp_path / "plain.csv").open(newline="") as stream:
        assert list(next(csv.DictReader(stream))) == list(report.COLUMNS)
    assert "layout" not in report.table(plain)
    assert "of linear" not in page.page(plain).partition("What the figures mean")[0]

    where.use(Layout((0,), 1, True, (1, 1), True))
    where.closed(Subject(servers[0].endpoint), TWO, reference, Setting(1, 8, 5), 2, workers_per_gpu="1")
    where.use(Layout((0, 1), 2, True, (1, 1), True))
    found = where.closed(Subject(endpoint), TWO, reference, Setting(2, 8, 5), 4, workers_per_gpu="2,0")
    assert (found["gpus"], found["servers"], found["mps"]) == (2, 2, "on")
    assert found["share_of_linear"] > 0
    assert "(2 GPUs, 2 servers, MPS on)" in line_of(found)
    assert any("unevenly over the GPUs: 2,0" in said for said in troubles(found))
    content = report.document(where, about)
    report.write(tmp_path / "found", content)
    with (tmp_path / "found.csv").open(newline="") as stream:
        last = list(csv.DictReader(stream))[-1]
    assert (last["gpus"], last["servers"], last["mps"], last["workers_per_gpu"]) == ("2", "2", "on", "2,0")
    assert "2 GPUs, 2 servers, MPS on" in report.table(content)
    assert "workers on each GPU" in page.page(content)


def test_json_of_before_there_were_layouts_is_drawn_again(tmp_path: Path) -> None:
    known = Path(bench_serving.__file__).parents[2] / "docs" / "benchmarks"
    old = known / "serving-resnet101-jpeg-h200.json"
    copy = tmp_path / old.name
    copy.write_bytes(old.read_bytes())
    assert "gpus" not in json.loads(copy.read_text())["rows"][0]
    assert command.redraw(copy) == 0
    assert copy.with_suffix(".html").is_file()


# --- MPS ---

FAKE_MPS = """#!{python}
import os, signal, subprocess, sys, time
pipes = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
file = os.path.join(pipes, "nvidia-cuda-mps-control.pid")
if sys.argv[1:] == ["-d"]:
    if "fail" in os.environ.get("FAKE_MPS", ""):
        sys.exit("an instance runs already")
    with open(os.environ["FAKE_MPS_LOG"], "a") as log:
        log.write(f"start {{os.environ.get('CUDA_VISIBLE_DEVICES')}}\\n")
    ignore = "import time; time.sleep(300)"
    daemon = subprocess.Popen([sys.executable, "-c", ignore], start_new_session=True)
    with open(file, "w") as stream:
        stream.write(str(daemon.pid))
else:
    assert sys.stdin.read() == "quit\\n"
    with open(os.environ["FAKE_MPS_LOG"], "a") as log:
        log.write("quit\\n")
    os.kill(int(open(file).read()), signal.SIGTERM)
"""


@pytest.fixture
def fake_mps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control program on the PATH, and the file in which it writes what it was told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / mps.PROGRAM
    program.write_text(FAKE_MPS.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    log = tmp_path / "mps.log"
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_MPS_LOG", str(log))
    monkeypatch.setenv(DEVICES, "1")
    return log


def test_mps_runs_for_the_block_with_all_gpus(fake_mps: Path) -> None:
    mps.check()
    with mps.chosen(True) as around:
        pid = int((Path(around[PIPES]) / f"{mps.PROGRAM}.pid").read_text())
        assert psutil.pid_exists(pid)
        assert os.getpgid(pid) != os.getpgid(0)
        assert Path(around[mps.LOGS]).is_dir()
    assert fake_mps.read_text() == "start None\nquit\n"
    assert not mps._lives(pid)
    assert not Path(around[PIPES]).exists()


def test_mps_ends_after_an_error_and_says_why_it_does_not_start(
    fake_mps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt), mps.chosen(True):
        raise KeyboardInterrupt
    assert fake_mps.read_text().endswith("quit\n")
    monkeypatch.setenv("FAKE_MPS", "fail")
    with pytest.raises(ServerError, match="an instance runs already"), mps.chosen(True):
        pass


def test_without_mps_another_daemon_is_not_used(fake_mps: Path) -> None:
    with mps.chosen(False) as around:
        assert not Path(around[PIPES]).exists()
    with mps.chosen(None) as around:
        assert around == {}
    assert not fake_mps.exists()


def test_ctrl_c_ends_mps_after_the_servers(fake_mps: Path, tmp_path: Path) -> None:
    """Ctrl-C goes to the whole group: the daemon is in another one, and is ended last."""
    program = tmp_path / "program.py"
    program.write_text(
        f"import argparse, sys, time\nsys.path[:0] = [{COMMANDS!r}]\n"
        "from server import mps\n"
        "from serving_bench import command\n"
        "def run(chosen):\n"
        "    with mps.chosen(True):\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "sys.exit(command.guarded(argparse.Namespace(), run))\n"
    )
    with subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        os.killpg(running.pid, signal.SIGINT)
        time.sleep(0.1)
        assert running.wait(30) == 130
    assert fake_mps.read_text() == "start None\nquit\n"


# --- peers ---


def test_rays_replicas_share_the_gpus() -> None:
    assert ray_serve.share_of_gpu(4, 32) == 0.125
    assert ray_serve.share_of_gpu(4, 4) == 1.0
    assert ray_serve.share_of_gpu(0, 4) == 0.0
    for gpus, per_gpu in ((1, 3), (4, 3), (8, 7)):
        assert 1 >= per_gpu * ray_serve.share_of_gpu(gpus, gpus * per_gpu) > 1 - 1 / (per_gpu + 1)
    assert [fronts_for(gpus, 64) for gpus in (0, 1, 2, 4, 8)] == [1, 3, 6, 12, 16]
    assert [fronts_for(gpus, 16) for gpus in (0, 1, 2, 4)] == [1, 3, 4, 4]
    assert fronts_for(4, 2) == 1


def test_ray_gets_gpus_fronts_and_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: dict[str, Any] = {}

    @contextlib.contextmanager
    def program(start: Start, arguments: Callable[[int], Sequence[str]], path: str) -> Iterator[str]:
        told.update(start=start, job=json.loads(Path(arguments(7)[-1]).read_text(encoding="utf-8")))
        yield "started"

    from serving_bench import archives

    monkeypatch.setattr(ray_serve, "program", program)
    monkeypatch.setattr("handlers.cpus.usable", lambda: 64)
    archive = archives.make_noop(tmp_path, "noop", 1)
    around = layouts.environment_of((0, 1, 2, 3))
    with ray_serve.served(Start("ray-noop", archive, tmp_path, Path(sys.executable), TWO, 32, 64, 5, 4, around)):
        pass
    (model,) = told["job"]["args"]["models"]
    assert (model["replicas"], model["num_gpus"], model["num_cpus"]) == (32, 0.125, 2)
    assert (told["job"]["args"]["fronts"], told["job"]["port"]) == (12, 7)
    assert told["start"].environment[DEVICES] == "0,1,2,3"
