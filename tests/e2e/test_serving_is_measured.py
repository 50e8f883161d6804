"""scripts/bench_serving on a real TorchServe with the demo archives: answers, errors, batching; no times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from server.paths import ROOT
from server.process import Server
from serving_bench import apply_choice, archives
from serving_bench.search import Choice
from serving_bench.temporary_server import TemporaryServer

from tests.e2e import host_process

pytestmark = pytest.mark.e2e


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "commands" / "bench_serving.py"), *map(str, arguments)]


def measured(out: Path, *arguments: object) -> tuple[str, Any]:
    """What it said, and OUT.json."""
    done = subprocess.run(command("--out", out, *arguments), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(out.with_suffix(".json").read_text())


def rows(content: Any, target: str) -> list[Any]:
    return [row for row in content["rows"] if row["target"] == target]


def check(found: Sequence[Any]) -> None:
    assert found
    for row in found:
        assert row["errors"] == 0
        assert row["answers_right"] > 0
        assert row["answers_wrong"] == 0


def test_quick(model_store: Path, tmp_path: Path) -> None:
    said, content = measured(tmp_path / "quick", "--quick", model_store / "digits.mar", model_store / "sentences.mar")
    for name, load in (("digits", "JPEG 500x375"), ("sentences", "one text")):
        found = rows(content, name)
        check(found)
        closed, at_half = found
        assert closed["load"].startswith(load)
        assert closed["mean_batch"] >= 1.5
        assert 0 < closed["handler_ms"] < closed["mean_ms"] + 50
        assert closed["queue_ms"] > 0
        assert closed["cores"]["workers"] > 0
        assert closed["noop_requests_per_s"] > 0
        assert at_half["loop"] == "open"
        assert f"{name} 1 worker, 16 clients" in said
        assert content["archives"][name]["content"].startswith("sha256:")
        assert content["archives"][name]["description"]["engine"]["name"]
        assert closed["stages"].keys() == {"read", "prepare", "run", "write"}
        assert "--quick measures no speeds" in content["engine_alone"][name]["reason"]
    assert len(rows(content, "noop")) == 2
    assert "6 points to measure" in said
    assert "point 1 of 6, about " in said
    assert "point 6 of 6: sentences 1 worker" in said
    text = (tmp_path / "quick.html").read_text()
    assert "<svg" in text
    assert "<th>network (launch and wait) ms</th>" in text


def test_a_running_server_and_a_body(server: Server, tmp_path: Path) -> None:
    body = tmp_path / "texts.json"
    body.write_text(json.dumps(["one text", "another"]))
    where = ("--folder", server.folder, "--ts-config", server.config_file)
    load = ("--body", body, "--content-type", "application/json", "--items-per-request", "2")
    short = ("--seconds", "1", "--warm-up", "1", "--clients", "4", "--rate", "none", "--no-noop")
    address = f"{server.config['inference_address']}/predictions/sentences"
    _, content = measured(tmp_path / "found", "--address", address, *where, *load, *short)
    (row,) = content["rows"]
    check([row])
    assert row["workers"] == 1
    assert row["mean_batch"] > 1
    assert row["cores"]["workers"] > 0
    assert row["items_per_s"] == pytest.approx(2 * row["requests_per_s"], rel=1e-3)


def test_two_servers_share_load_and_workers(model_store: Path, tmp_path: Path) -> None:
    short = ("--seconds", "2", "--warm-up", "1", "--workers", "2", "--clients", "8", "--rate", "5")
    _, content = measured(tmp_path / "found", model_store / "digits.mar", "--servers", "1,2", *short)
    found = rows(content, "digits")
    check(found)
    assert [(row["servers"], row["loop"]) for row in found] == [
        (1, "closed"),
        (1, "open"),
        (2, "closed"),
        (2, "open"),
    ]
    assert {row["workers"] for row in found} == {2}
    assert [row["servers"] for row in rows(content, "noop")] == [1, 2]
    assert all(0 < row["share_of_engine"] < 1.5 for row in found)
    assert content["engine_alone"]["digits"]["batch"] == 64
    assert "workers_per_gpu" not in found[0]  # this is also for machines without a GPU
    assert content["settings"]["servers"] == ["1", "2"]


def test_triton_and_kserve_serve_the_same_archive_in_the_same_run(model_store: Path, tmp_path: Path) -> None:
    hosts = ("triton", "kserve")
    for host in hosts:
        host_process.environment(host)
    short = ("--seconds", "1", "--warm-up", "1", "--workers", "1", "--clients", "4", "--rate", "none", "--no-noop")
    _, content = measured(tmp_path / "found", model_store / "digits.mar", "--peer", ",".join(hosts), *short)
    assert not content["skipped"]
    assert content["peers"].keys() == set(hosts)
    check(rows(content, "digits"))
    for host in hosts:
        (row,) = rows(content, f"{host}-digits")
        check([row])
        assert (row["kind"], row["agrees"]) == ("peer", "2 of 2")
        assert row["mean_batch"] >= 1
        assert row["cores"]["server"] > 0


def test_stopped_it_leaves_nothing_behind(model_store: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    arguments = command("--out", tmp_path / "found", model_store / "digits.mar", "--workers", "1", "--seconds", "60")
    with output.open("w") as stream:
        running = subprocess.Popen(arguments, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        children = _under_load(running, output)
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(60) == 130
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    assert "stopped" in output.read_text()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def _under_load(running: subprocess.Popen[bytes], output: Path) -> list[psutil.Process]:
    """Wait until TorchServe's wrapper, its Java, a worker and the generator run. `wrk --version` is no load."""
    deadline = time.monotonic() + 120
    while True:
        assert running.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        children = psutil.Process(running.pid).children(recursive=True)
        lines = [" ".join(line) for child in children if (line := _command_line(child))]
        works = any("model_service_worker" in line for line in lines)
        if works and any("stream_client" in line or "load.lua" in line for line in lines):
            return children
        time.sleep(0.2)


def _command_line(process: psutil.Process) -> list[str]:
    """Empty for a process that has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def with_batch_size(size: int, model_store: Path, tmp_path: Path) -> Path:
    """A copy of the digits' archive with another batch size: tune tries it first, then those below it."""
    mar = tmp_path / "digits.mar"
    mar.write_bytes((model_store / "digits.mar").read_bytes())
    apply_choice.write(mar, Choice(1, size, 1))
    return mar


def test_tune_writes_what_it_has_measured(model_store: Path, tmp_path: Path) -> None:
    mar = with_batch_size(2, model_store, tmp_path)
    bounds = ("--most-workers", "1", "--most-batch", "2", "--seconds", "1", "--warm-up", "1")
    program = [
        sys.executable,
        str(ROOT / "scripts" / "commands" / "tune.py"),
        str(mar),
        "--max-throughput",
        "--write",
        *bounds,
    ]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best: 1 worker, batch size" in done.stdout
    assert "confirmed in an open loop" in done.stdout
    with zipfile.ZipFile(mar) as archive:
        config = yaml.safe_load(archive.read("model-config.yaml"))
    assert f"batch size {config['batchSize']}, delay {config['maxBatchDelay']} ms: " in done.stdout


def test_tune_changes_nothing_if_the_goal_is_missed(model_store: Path, tmp_path: Path) -> None:
    mar = with_batch_size(1, model_store, tmp_path)
    before = mar.read_bytes()
    program = [sys.executable, str(ROOT / "scripts" / "commands" / "tune.py"), str(mar), "--p99-ms", "1", "--write"]
    program += ["--most-workers", "1", "--most-batch", "1", "--seconds", "1", "--warm-up", "1"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no setting meets the goal; nothing was changed" in done.stderr
    assert "next, try: scripts/tune" in done.stderr
    assert "minWorkers" not in done.stdout
    assert mar.read_bytes() == before


def test_a_choice_is_applied_to_a_running_server(model_store: Path) -> None:
    archive = archives.read(str(model_store / "digits.mar"))
    with TemporaryServer({}) as server:
        server.register(archive, None, None)
        server.scale("digits", 1)
        apply_choice.apply(server.client, "digits", Choice(2, 3, 4))
        described = server.client.describe("digits")
        assert (described["batchSize"], described["maxBatchDelay"], len(described["workers"])) == (3, 4, 2)
        image = (ROOT / "archive" / "digits" / "samples" / "seven.png").read_bytes()
        assert server.client.predict("digits", image).json()[0]["label"] == "7"
    assert not server.folder.exists()
