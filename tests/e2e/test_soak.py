"""scripts/soak finds a handler that leaks, one that swaps answers, and passes one that does neither."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from server.paths import ROOT
from serving_bench.archives import make

pytestmark = pytest.mark.e2e

HANDLER = """
class Handler:
    def initialize(self, context):
        self.kept, self.count = [], 0

    def handle(self, rows, context):
        self.count += len(rows)
        return [self.answer(bytes(row["body"])) for row in rows]

    def answer(self, body):
        {body}
        return body
"""
CONFIG = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 4, "maxBatchDelay": 5}


BODIES = {
    "good": "pass",
    "leaking": "self.kept.append(bytearray(b'x' * (3 << 20)))",
    "swapping": "return body if self.count < 50 else b'a' * 100",
}

Soaks = Mapping[str, tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def soaks(tmp_path_factory: pytest.TempPathFactory) -> Soaks:
    """The exit status and the report of a short soak of each handler; all at once, because they mostly wait."""
    with ThreadPoolExecutor(len(BODIES)) as pool:
        found = pool.map(lambda name: soaked(tmp_path_factory.mktemp(name), BODIES[name]), BODIES)
        return dict(zip(BODIES, found, strict=True))


def soaked(folder: Path, body: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the report of a short soak of a handler with that statement."""
    (folder / "handler.py").write_text(HANDLER.format(body=body), encoding="utf-8")
    archive = make(folder, "mine", folder / "handler.py", CONFIG)
    for name in ("a", "b", "c"):
        (folder / f"{name}.bin").write_bytes(name.encode() * 100)
    samples = [part for name in ("a", "b", "c") for part in ("--sample", f"mine={folder / name}.bin")]
    command = [sys.executable, "scripts/commands/run_soak.py", "--only", "--archive", f"mine={archive.file}"]
    command += ["--seconds", "20", "--rate", "30", "--out", str(folder / "report"), *samples]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    print(done.stdout, done.stderr)
    assert (folder / "report.md").is_file()
    return done.returncode, json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_a_good_handler_passes(soaks: Soaks) -> None:
    status, report = soaks["good"]
    assert (status, report["passed"], report["problems"]) == (0, True, [])
    assert report["requests"]["right"] > 100
    assert report["requests"]["refused"] > 0
    assert {"java", "mine, largest worker"} <= {item["name"] for item in report["memory"]["verdicts"]}


def test_a_leaking_handler_fails(soaks: Soaks) -> None:
    status, report = soaks["leaking"]
    assert status == 1
    assert any(problem.startswith("memory of mine, largest worker grew") for problem in report["problems"])
    assert not any("another request" in problem for problem in report["problems"])


def test_the_answer_to_another_request_is_found(soaks: Soaks) -> None:
    status, report = soaks["swapping"]
    assert status == 1
    assert any("the answer to another request" in problem for problem in report["problems"])


def test_an_interrupted_soak_reports_what_it_saw(tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text(HANDLER.format(body="pass"), encoding="utf-8")
    archive = make(tmp_path, "mine", tmp_path / "handler.py", CONFIG)
    command = [sys.executable, "scripts/commands/run_soak.py", "--only", "--archive", f"mine={archive.file}"]
    command += ["--hours", "1", "--rate", "30", "--out", str(tmp_path / "report")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as soak:
        assert soak.stdout is not None
        for line in soak.stdout:
            if line.startswith("1 forms") or "Soaking" in line:
                break
        with pytest.raises(subprocess.TimeoutExpired):
            soak.wait(8)
        soak.terminate()
        soak.wait(60)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["state"] == "interrupted"
    assert report["requests"]["right"] > 10
