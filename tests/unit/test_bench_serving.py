"""What scripts/bench_serving is made of, against a small server of the test's own: no TorchServe."""

from __future__ import annotations

import argparse
import base64
import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import bench_serving
import numpy as np
import psutil
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from server.client import Client
from server.config import config_on_free_ports, read_properties
from server.errors import ServerError
from serving_bench import (
    answer_comparison,
    archives,
    command,
    engine_speed,
    environment,
    loads,
    page,
    peers,
    prometheus,
    reference_answers,
    report,
    wrk_generator,
)
from serving_bench.address import find
from serving_bench.generator import Endpoint, Generator, GeneratorError, Load
from serving_bench.generator_options import generators
from serving_bench.measure import Bench, Setting
from serving_bench.peers import processes
from serving_bench.resource_usage import GpuMonitor, ProcessMonitor, read_sample
from serving_bench.rows import line_of, troubles
from serving_bench.stream_generator import StreamGenerator

TWO = Load("two bodies", [b"one", b"three"], {"Content-Type": "text/plain", "X-Top-K": "1"}, "texts", 3)
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


@dataclass
class Seen:
    """What the test's server is told to do, and what it got."""

    status: int = 200
    wait_s: float = 0.0
    answer: bytes | None = None
    length: bool = True
    bodies: set[bytes] = field(default_factory=set)
    headers: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def server() -> Iterator[tuple[Endpoint, Seen]]:
    """Echoes bodies, or does as Seen says."""
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.bodies.add(body)
            seen.headers = dict(self.headers)
            time.sleep(seen.wait_s)
            answer = body if seen.answer is None else seen.answer
            self.send_response(seen.status)
            if seen.length:
                self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Quiet."""

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle()

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    running = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield Endpoint(f"http://127.0.0.1:{running.server_port}/predictions/echo", {"Authorization": "Bearer key"}), seen
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture(params=["streams", pytest.param("wrk", marks=needs_wrk)])
def generator(request: pytest.FixtureRequest) -> Generator:
    return StreamGenerator(2) if request.param == "streams" else wrk_generator.WrkGenerator("wrk", 2)


def test_a_closed_loop_sends_all_bodies_and_counts(server: tuple[Endpoint, Seen], generator: Generator) -> None:
    endpoint, seen = server
    seen.wait_s = 0.02
    result = generator.closed(endpoint, TWO, 4, 1)
    assert seen.bodies == {b"one", b"three"}
    assert seen.headers["Authorization"] == "Bearer key"
    assert seen.headers["X-Top-K"] == "1"
    assert result.errors == 0
    assert 20 < result.answered <= 220  # 4 clients, 20 ms each: at most 200 in a second
    assert 20 <= result.latency_ms["p50"] <= result.latency_ms["p99"] <= result.latency_ms["max"]
    assert result.cpu_seconds > 0


def test_errors_count_by_status_and_not_as_answers(server: tuple[Endpoint, Seen], generator: Generator) -> None:
    endpoint, seen = server
    seen.status, seen.wait_s = 503, 0.02
    seen.answer = b'{"code": 503, "message": "the \\"queue\\" is full"}'
    result = generator.closed(endpoint, TWO, 2, 1)
    assert list(result.statuses) == ["503"]
    assert result.answered == result.requests_per_s == 0
    assert result.errors == result.statuses["503"] > 0
    assert result.messages == {"503": 'the "queue" is full'}


def test_nobody_listens(generator: Generator) -> None:
    nobody = Endpoint("http://127.0.0.1:9/x", {})
    with pytest.raises(GeneratorError, match=r"[Cc]onnect"):
        generator.closed(nobody, TWO, 2, 1)


def test_an_open_loop_keeps_its_rate_while_the_server_stalls(server: tuple[Endpoint, Seen]) -> None:
    endpoint, seen = server
    seen.wait_s = 0.2
    result = StreamGenerator(2).open(endpoint, TWO, rate=40, connections=64, seconds=2)
    assert result.errors == 0
    assert 40 <= result.answered <= 125  # 80 of a Poisson process; five standard deviations each way
    assert result.latency_ms["p50"] >= 200
    assert result.late_ms["p50"] < 150
    closed = StreamGenerator(1).closed(endpoint, TWO, 1, 2)
    assert closed.answered <= 11  # one client waits, and hides what waits behind it


def test_requests_that_wait_for_a_connection_count_from_when_they_were_due(server: tuple[Endpoint, Seen]) -> None:
    endpoint, seen = server
    seen.wait_s = 0.1
    result = StreamGenerator(1).open(endpoint, TWO, rate=30, connections=1, seconds=1)
    assert result.latency_ms["max"] > 300  # some thirty of 0.1 s, one after another


def test_an_answer_without_length_is_a_failure_of_its_own(server: tuple[Endpoint, Seen]) -> None:
    endpoint, seen = server
    seen.length = False
    result = StreamGenerator(1).closed(endpoint, TWO, 1, 1)
    assert result.answered == 0
    assert set(result.failures) == {"unreadable"}


@pytest.mark.parametrize(("clients", "most", "threads"), [(1, 4, 1), (16, 4, 4), (6, 4, 3), (7, 4, 1), (256, 1, 1)])
def test_wrks_threads_share_clients_evenly(clients: int, most: int, threads: int) -> None:
    assert wrk_generator.threads_for(clients, most) == threads


def test_wrk_takes_as_many_bodies_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrk_generator, "LUA_BYTES", 10)
    assert wrk_generator.write_bodies(tmp_path, [b"1234", b"12345", b"12"], 1) == 2
    with pytest.raises(GeneratorError, match="--generator streams"):
        wrk_generator.write_bodies(tmp_path, [b"123456"], 2)


VECTOR = [0.1 * place for place in range(16)]
RANKING = [{"label": "cat", "probability": 0.9}, {"label": "dog", "probability": 0.1}]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (VECTOR, VECTOR),
        ([value + 1e-4 for value in VECTOR], VECTOR),
        ([VECTOR, VECTOR], [VECTOR, VECTOR]),
        ([{"label": "cat", "probability": 0.895}, {"label": "cow", "probability": 0.05}], RANKING),
        (
            [{"label": "b", "score": 0.5}, {"label": "a", "score": 0.5}],
            [{"label": "a", "score": 0.5}, {"label": "b", "score": 0.5}],
        ),
        ({"cat": 0.895, "cow": 0.05}, {"cat": 0.9, "dog": 0.1}),
        ({"predictions": [RANKING]}, {"predictions": [RANKING]}),
    ],
)
def test_answers_that_say_the_same(found: object, wanted: object) -> None:
    assert answer_comparison.difference(json.dumps(found).encode(), json.dumps(wanted).encode()) is None


@pytest.mark.parametrize(
    ("found", "wanted", "said"),
    [
        (VECTOR[::-1], VECTOR, "cosine"),
        ([VECTOR], [VECTOR, VECTOR], "1 entries, not 2"),
        (VECTOR[:-1], VECTOR, "15 entries, not 16"),
        ([{"label": "dog", "probability": 0.9}], RANKING, "another label"),
        ([{"label": "cat", "probability": 0.5}], RANKING, "0.5, not 0.9"),
        ({"dog": 0.9, "cat": 0.1}, {"cat": 0.9, "dog": 0.1}, "another label"),
        ([float("nan")] * 16, VECTOR, "finite"),
        ({"code": 500}, RANKING, "differs"),
        ([{"label": "PER", "score": 0.9, "start": 0}], [{"label": "PER", "score": 0.9, "start": 4}], "not 4"),
    ],
)
def test_answers_that_differ(found: object, wanted: object, said: str) -> None:
    difference = answer_comparison.difference(json.dumps(found).encode(), json.dumps(wanted).encode())
    assert difference is not None
    assert said in difference


def test_answers_in_bytes() -> None:
    vector = np.linspace(-1, 1, 64)
    for kind in ("<f4", "<f2"):
        raw, near, other = (values.astype(kind).tobytes() for values in (vector, vector + 1e-3, vector[::-1]))
        assert answer_comparison.difference(near, raw) is None
        assert "cosine" in str(answer_comparison.difference(other, raw))
        encoded = [json.dumps({"b64": base64.b64encode(data).decode()}).encode() for data in (near, raw, other)]
        assert answer_comparison.difference(encoded[0], encoded[1]) is None
        assert answer_comparison.difference(encoded[2], encoded[1]) is not None
    with io.BytesIO() as one, io.BytesIO() as two:
        np.save(one, vector)
        np.save(two, vector + 1e-3)
        assert answer_comparison.difference(two.getvalue(), one.getvalue()) is None
    assert answer_comparison.difference(b"\x00", b"\x00\x01") == "has 1 bytes, not 2"


METRICS = """\
# HELP BatchSize Torchserve prometheus histogram metric with unit: Count
# TYPE BatchSize histogram
BatchSize_bucket{ModelName="digits",Level="Model",Hostname="h",le="+Inf",} 4.0
BatchSize_count{ModelName="digits",Level="Model",Hostname="h",} 4.0
BatchSize_sum{ModelName="digits",Level="Model",Hostname="h",} 30.0
BatchSize_count{ModelName="other",Level="Model",Hostname="h",} 9.0
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{model_name="digits",model_version="1.0",hostname="h",} 20.0
ts_inference_requests_total{model_name="digits",model_version="default",hostname="h",} 10.0
# TYPE ts_queue_latency_microseconds counter
ts_queue_latency_microseconds{model_name="digits",model_version="default",hostname="h",} 6.0E4
"""


def test_metrics_are_read_as_prometheus_reads_them() -> None:
    found = prometheus.of_model(METRICS, "digits")
    assert found["BatchSize_sum"] == 30
    assert found["ts_inference_requests_total"] == 30
    read = [sample for family in text_string_to_metric_families(METRICS) for sample in family.samples]
    oracle = {(name.removesuffix("_total"), *labels.values(), value) for name, labels, value, *_ in read}
    found_here = {
        (name.removesuffix("_total"), *labels.values(), value) for name, labels, value in prometheus.samples(METRICS)
    }
    assert found_here == oracle
    change = prometheus.MetricChange({"BatchSize_count": 2, "BatchSize_sum": 2}, found)
    assert change.mean("BatchSize") == 14
    assert change.mean("BatchTime") is None
    assert change.per_request_ms("ts_queue_latency_microseconds") == 2
    assert change.histograms() == ["BatchSize"]


def test_the_steps_of_a_batch_are_told_apart() -> None:
    text = "\n".join(
        f'StepTime_{kind}{{ModelName="digits",Step="{step}",}} {value}'
        for step, total in (("read", 8.0), ("run", 40.0))
        for kind, value in (("sum", total), ("count", 4.0))
    )
    change = prometheus.MetricChange({}, prometheus.of_model(text, "digits"))
    assert {name: change.mean(name) for name in change.histograms()} == {"StepTime.read": 2, "StepTime.run": 10}


def test_photographs_are_resized_and_two() -> None:
    load = loads.images(None, (500, 375))
    assert len(load.bodies) == 2
    assert [Image.open(io.BytesIO(body)).size for body in load.bodies] == [(500, 375)] * 2
    assert 40_000 < load.mean_bytes < 70_000


def test_a_folders_files_go_as_they_are(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("no image")
    load = loads.images(tmp_path, None)
    assert load.bodies == [(tmp_path / "b.png").read_bytes()]
    assert load.headers == {"Content-Type": "image/png"}
    with pytest.raises(ValueError, match="holds no image"):
        loads.images(tmp_path / "notes.txt", None)


@pytest.mark.parametrize(
    ("kind", "shape"), [("uint8", (3, 32, 32, 3)), ("fp16", (3, 3, 32, 32)), ("fp32", (3, 3, 32, 32))]
)
def test_tensors(kind: str, shape: tuple[int, ...]) -> None:
    load = loads.tensors(kind, 3, {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3})
    array = np.load(io.BytesIO(load.bodies[0]))
    assert array.shape == shape
    assert array.dtype == loads.TENSOR_KINDS[kind]
    assert load.items == 3
    if kind != "uint8":
        assert -1 <= array.min() < array.max() <= 1


def test_texts(tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_text("one\n\ntwo\nthree ä\n", encoding="utf-8")
    assert loads.texts(file, 1).bodies == [b"one", b"two", "three ä".encode()]
    many = loads.texts(file, 4)
    assert [json.loads(body) for body in many.bodies] == [
        ["one", "two", "three ä", "one"],
        ["two", "three ä", "one", "two"],
    ]
    assert many.items == 4
    file.write_text("\n")
    with pytest.raises(ValueError, match="holds no text"):
        loads.texts(file, 1)


def test_the_noop_archive_answers_so_many_bytes(tmp_path: Path) -> None:
    archive = archives.make_noop(tmp_path, "noop", 7)
    assert archives.read(f"n={archive.file}").name == "n"
    assert archive.kind is None
    from serving_bench.noop_handler import Noop

    handler = Noop()
    handler.initialize(type("Context", (), {"model_yaml_config": {"answerBytes": 7}}))
    assert handler.handle([{}, {}], None) == [b"xxxxxxx"] * 2


def test_config_on_free_ports(tmp_path: Path) -> None:
    config = read_properties(config_on_free_ports(tmp_path / "c", {"job_queue_size": "7", "new_key": "1"}))
    assert config["job_queue_size"] == "7"
    assert config["new_key"] == "1"
    assert len({config[key] for key in ("inference_address", "management_address", "grpc_inference_port")}) == 3
    assert Path(config["metrics_config"]).is_absolute()
    assert config["enable_model_api"] == "true"


def test_watch_counts_cpu_and_memory() -> None:
    with ProcessMonitor({"me": [psutil.Process()]}) as usage:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
    assert usage.cpu_seconds["me"] >= 0.15
    assert usage.rss_mib["me"] > 10


def test_nvidia_smis_lines() -> None:
    sample = read_sample("1, 87, 70123\n")
    assert sample is not None
    assert (sample.index, sample.busy, sample.memory_mib) == (1, 0.87, 70123)
    assert read_sample("0, [N/A], [N/A]") is None
    gpus = GpuMonitor([sample, sample])
    assert gpus.between(sample.at, sample.at) == {1: (0.87, 70123)}
    assert gpus.memory_mib() is None


@dataclass(frozen=True)
class Echo:
    """The test's server as what is measured."""

    where: Endpoint
    kind: str = "archive"
    name: str = "echo"

    def endpoint(self) -> Endpoint:
        return self.where

    def groups(self) -> dict[str, list[psutil.Process]]:
        return {"java": [psutil.Process()], "workers": []}

    def metrics(self) -> dict[str, float]:
        return {}


@pytest.fixture
def bench() -> Bench:
    return Bench(StreamGenerator(1), StreamGenerator(1), GpuMonitor(), 1, 1, lambda _: None, lambda _: None)


def test_a_point(server: tuple[Endpoint, Seen], bench: Bench) -> None:
    endpoint, seen = server
    seen.wait_s = 0.01
    bench.engine = engine_speed.EngineSpeed(1000)
    bench.noop["two bodies", 2] = 10_000
    reference = reference_answers.ask(endpoint, TWO)
    row = bench.closed(Echo(endpoint), TWO, reference, Setting(1, 8, 5), 2)
    assert row["items_per_s"] == pytest.approx(3 * row["requests_per_s"], rel=1e-3)
    assert row["share_of_engine"] == pytest.approx(row["items_per_s"] / 1000, rel=1e-3)
    assert row["headroom"] == pytest.approx(10_000 / row["requests_per_s"], rel=1e-3)
    assert row["answers_right"] > 2
    assert row["answers_wrong"] == 0
    assert row["mean_ms"] == pytest.approx(2000 / row["requests_per_s"], rel=1e-3)
    assert "echo 1 worker, 2 clients" in line_of(row)
    slow = bench.open(Echo(endpoint), TWO, reference, Setting(), 20.0)
    assert slow["loop"] == "open"
    assert bench.rows == [row, slow]


def test_wrong_answers_and_errors_are_said(server: tuple[Endpoint, Seen], bench: Bench) -> None:
    endpoint, seen = server
    reference = reference_answers.ask(endpoint, TWO)
    seen.answer = b"other"
    row = bench.closed(Echo(endpoint), TWO, reference, Setting(1), 1)
    assert row["answers_right"] == 0
    assert any("WRONG ANSWERS" in said for said in troubles(row))
    assert report.best([row]) == []  # a fast wrong result is none
    seen.status = 503
    refused = bench.closed(Echo(endpoint), TWO, reference, Setting(1), 1)
    assert any("job_queue_size" in said for said in troubles(refused))
    with pytest.raises(GeneratorError, match="answered 503"):
        reference_answers.ask(endpoint, TWO)


def test_a_no_op_that_is_no_faster_is_said(server: tuple[Endpoint, Seen], bench: Bench) -> None:
    endpoint, _ = server
    bench.closed(Echo(endpoint, "no-op", "noop"), TWO, None, Setting(1), 1)
    row = bench.closed(Echo(endpoint), TWO, reference_answers.ask(endpoint, TWO), Setting(1), 1)
    bench.noop["two bodies", 1] = row["requests_per_s"] * 1.1
    row = bench.closed(Echo(endpoint), TWO, reference_answers.ask(endpoint, TWO), Setting(1), 1)
    row["headroom"] = 1.1
    assert any("the front end or the generator limits" in said for said in troubles(row))


@pytest.mark.parametrize(("late", "told"), [(None, False), (1.0, False), (30.0, True)])
def test_a_generator_that_is_late_is_told(late: float | None, told: bool) -> None:
    row = {"errors": 0, "p99_ms": 90.0, "late_p99_ms": late}
    assert any("ms late" in said for said in troubles(row)) is told


@pytest.mark.parametrize(("cores", "closed", "open_loop"), [(1, 1, 1), (2, 1, 1), (16, 4, 8)])
def test_an_open_loop_gets_half_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, closed: int, open_loop: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    asked = argparse.Namespace(generator="streams", wrk=None, generator_threads=None)
    assert generators(asked) == (StreamGenerator(closed), StreamGenerator(open_loop))
    assert generators(argparse.Namespace(**{**vars(asked), "generator_threads": 3})) == (StreamGenerator(3),) * 2


def test_report_and_page(server: tuple[Endpoint, Seen], bench: Bench, tmp_path: Path) -> None:
    endpoint, _ = server
    reference = reference_answers.ask(endpoint, TWO)
    odd = Echo(endpoint, name="<b>echo</b>")
    for clients in (1, 2):
        bench.closed(odd, TWO, reference, Setting(1, 8, 5), clients)
    bench.open(odd, TWO, reference, Setting(1, 8, 5), 20.0)
    bench.skip("another", "it is not installed")
    about = {
        "conditions": environment.environment("abc") | {"generator": "g", "open_loop": "o"},
        "archives": {"a": {}},
    }
    out = tmp_path / "found-1.5"
    content = report.document(bench, about)
    report.write(out, content)
    assert report.read(tmp_path / "found-1.5.json")["rows"] == json.loads(json.dumps(bench.rows))
    with (tmp_path / "found-1.5.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(report.COLUMNS)
    assert len(rows) == 3
    assert rows[0]["commit"] == "abc"
    text = page.page(content)
    assert text.count("<svg") == 3  # no time parts: this server has no metrics
    assert "<b>echo</b>" not in text
    assert "{&#x27;" not in text.partition("All conditions")[2]  # no dict as Python writes it
    assert "another: it is not installed" in text
    assert not re.search(r"(src|href)=.http|url\(http|@import", text)  # it needs nothing else
    assert command.redraw(tmp_path / "found-1.5.json") == 0
    assert (tmp_path / "found-1.5.html").is_file()


def test_the_conditions_are_a_table() -> None:
    about = {
        "settings": {"workers": [1, 2], "mps": [], "quick": False, "peer": None},
        "archives": {
            "m": {"engine": {"times": {"1": {"cudnn": 0.5, "eager": 7.3}}}, "parts": [{"a": 1}, {"a": "<b>"}]}
        },
    }
    text = page._details(about)
    for name, value in (
        ("workers", "1, 2"),
        ("mps", "none"),
        ("quick", "no"),
        ("peer", "none"),
        ("m, engine, times, 1", "cudnn: 0.5; eager: 7.3"),
        ("m, parts, 2", "a: &lt;b&gt;"),
    ):
        assert f"<tr><td>{name}</td><td>{value}</td></tr>" in text
    assert text.count("<table") == 2


def test_the_engines_own_speed(tmp_path: Path) -> None:
    rows = [
        {"batch": 1, "length": 128, "mix": None, "items_per_s": 10.5},
        {"batch": 32, "length": 128, "mix": None, "items_per_s": 99},
    ]
    file = tmp_path / "engine.json"
    file.write_text(json.dumps({"rows": rows}))
    assert engine_speed.items_per_s(None) is None
    assert engine_speed.items_per_s("26000") == 26000
    assert engine_speed.items_per_s(str(file)) == 99
    assert engine_speed.items_per_s(f"{file}:1x128") == 10.5
    with pytest.raises(ValueError, match="no row at 5"):
        engine_speed.items_per_s(f"{file}:5")
    with pytest.raises(ValueError, match="there is no file"):
        engine_speed.items_per_s("nothing.json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name an archive"),
        (["--redraw", "x.csv"], "FILE.json"),
        (["--address", "localhost:8080"], "http://HOST:PORT"),
        (["--address", "http://h/x", "--body", __file__], "--content-type"),
        (["--address", "http://h/x"], "give --image"),
        (["--address", "http://h/x", "--tensors", "int4", "2"], "uint8, fp16, fp32"),
        (["--address", "http://h/x", "--size", "8x8", "--wrk", "/nowhere/wrk"], "apt install wrk"),
    ],
)
def test_errors_say_the_way_out(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_serving.main(arguments) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.mar"], "scripts/package makes archives"),
        ([__file__], "is no .mar archive"),
        (["--clients", "0"], "whole numbers from 1"),
        (["--rate", "fast"], "a share of the most"),
        (["--rate", "-5"], "a share of the most"),
        (["--size", "500"], "WIDTHxHEIGHT"),
        (["--seconds", "0.1"], "1 or more"),
        (["--header", "nothing"], "NAME: VALUE"),
        (["--setting", "nothing"], "KEY=VALUE"),
    ],
)
def test_the_command_line_refuses(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_serving.main(arguments)
    assert said in capsys.readouterr().err


def test_an_address_of_another_server_is_no_torchserve_of_ours(tmp_path: Path) -> None:
    client = Client(tmp_path, {"inference_address": "http://127.0.0.1:8080"})
    running = find("http://127.0.0.1:8080/predictions/digits/2.0", client)
    assert running.client is None  # no key file
    assert running.model == "digits"
    (tmp_path / "key_file.json").write_text("{}")
    assert find("http://127.0.0.1:8080/predictions/digits", client).client is client
    assert find("http://127.0.0.1:8081/predictions/digits", client).client is None
    assert find("http://127.0.0.1:8080/other", client).name == "http://127.0.0.1:8080/other"


def test_interrupted_generators_leave_no_process(server: tuple[Endpoint, Seen], tmp_path: Path) -> None:
    """As Ctrl-C does: SIGINT to the whole group."""
    endpoint, seen = server
    program = tmp_path / "program.py"
    program.write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        f"sys.path[:0] = {[str(Path(bench_serving.__file__).parent)]!r}\n"
        "from serving_bench.generator import Endpoint, Load\n"
        "from serving_bench.stream_generator import StreamGenerator\n"
        f"StreamGenerator(2).closed(Endpoint({endpoint.url!r}, {{}}), Load('x', [b'x'], {{}}), 2, 60)\n"
    )
    running = subprocess.Popen([sys.executable, str(program)], start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(psutil.Process(running.pid).children()) == 2)
    children = psutil.Process(running.pid).children()
    wait_for(lambda: seen.bodies)  # the load runs: an interpreter that still starts may lose the signal
    time.sleep(0.5)
    os.killpg(running.pid, 2)
    try:
        running.wait(30)  # half of the load's time
    finally:
        if running.poll() is None:
            os.killpg(running.pid, 9)
            running.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def wait_for(holds: Callable[[], Any], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("one", "other", "agrees"),
    [
        (RANKING, {"cat": 0.7, "dog": 0.3}, True),
        (RANKING, {"dog": 0.7, "cat": 0.3}, False),
        (VECTOR, [VECTOR], True),
        ([VECTOR], {"output": [VECTOR]}, True),
        (VECTOR, VECTOR[::-1], False),
        (VECTOR, VECTOR[1:], False),
        (RANKING, {"outputs": [{"name": "answer", "data": [json.dumps(RANKING)]}]}, True),
        (RANKING, VECTOR, None),
        (RANKING, "words", None),
    ],
)
def test_peers_agree_whatever_the_form(one: object, other: object, agrees: bool | None) -> None:
    assert answer_comparison.agree(json.dumps(one).encode(), json.dumps(other).encode()) is agrees
    assert answer_comparison.agree(b"\x00", json.dumps(other).encode()) is None


def test_the_usual_hugging_face_handler_answers_as_the_archive_does(tmp_path: Path) -> None:
    """Row by row as TorchServe hands them over, against sentence-transformers' own pooling."""
    from demo import demo_text_encoder
    from sentence_transformers import SentenceTransformer
    from serving_bench.peers.hf_text_handler import HuggingFaceText

    folder = demo_text_encoder()
    handler = HuggingFaceText()
    context = type("Context", (), {})()
    context.system_properties = {"model_dir": str(folder), "gpu_id": None}
    context.model_yaml_config = {"maxTokens": 256, "normalize": True}
    handler.initialize(context)
    rows: list[dict[str, Any]] = [
        {"body": b"one text"},
        {"body": bytearray(b'["another", "and a longer one"]')},
        {"data": "one text"},
    ]
    found = handler.handle(rows, context)
    wanted = SentenceTransformer(str(folder), device="cpu").encode(["one text", "another", "and a longer one"])
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-5)
    np.testing.assert_allclose(found[1], wanted[1:], atol=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-6)


def start_of(folder: Path, load: Load = TWO, **more: Any) -> peers.Start:
    archive = archives.Archive("tiny", folder / "tiny.mar")
    named: dict[str, Any] = {"python": Path(sys.executable), "workers": 1, "batch_size": 8, "delay_ms": 5, **more}
    return peers.Start("peer", archive, folder, load=load, **named)


def test_a_peer_that_does_not_start_says_its_last_words(tmp_path: Path) -> None:
    server = tmp_path / "server.py"
    server.write_text("raise SystemExit('no such GPU')")
    start = start_of(tmp_path)
    arguments = processes.with_job(start, server, {})
    with pytest.raises(ServerError, match="no such GPU"), processes.program(start, arguments, "/"):
        pass


def test_a_peer_is_started_asked_and_ended(tmp_path: Path) -> None:
    server = tmp_path / "server.py"
    server.write_text(
        "import json, sys, http.server\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        self.send_response(200); self.send_header('Content-Length', '2'); self.end_headers()\n"
        "        self.wfile.write(b'ok')\n"
        "job = json.load(open(sys.argv[1]))\n"
        "http.server.HTTPServer(('127.0.0.1', job['port']), Handler).serve_forever()\n"
    )
    start = start_of(tmp_path)
    with processes.program(start, processes.with_job(start, server, {}), "/") as program:
        assert reference_answers.ask(program.endpoint(), TWO).answers == [b"ok", b"ok"]
        assert [process.pid for process in program.groups()["server"]] == [program.process.pid]
    assert program.process.poll() is not None
