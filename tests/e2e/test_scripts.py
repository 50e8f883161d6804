"""What people type: scripts/serve, scripts/scale and scripts/token, as they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from server.client import Client
from server.paths import ROOT
from server.process import Server

pytestmark = pytest.mark.e2e


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "commands" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_scale_and_token(server: Server, client: Client) -> None:
    where = ("--folder", str(server.folder), "--ts-config", str(server.config_file))
    assert run("tokens.py", *where).stdout.strip() == client.token("inference")
    scaled = run("scale.py", "sentences", "2", *where)
    assert scaled.returncode == 0, scaled.stderr
    assert "2 of 2 workers ready" in scaled.stdout
    assert len(client.describe("sentences")["workers"]) == 2
    assert run("scale.py", "sentences", "1", *where).returncode == 0
    unknown = run("scale.py", "nobody", "1", *where)
    assert unknown.returncode == 1
    assert "nobody" in unknown.stderr


def test_serve_checks_serves_and_leaves_nothing_behind(
    tmp_path: Path, other_config: Path, config_maker: Callable[[Path], Path]
) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "commands" / "serve.py"), "--ts-config", str(other_config)]
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True, timeout=300, check=False)
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
            second = [*command[:-1], str(config_maker(tmp_path / "second.properties"))]
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
