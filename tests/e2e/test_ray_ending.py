"""serve-ray answers what is on its way when it ends, ends soon, and leaves nothing, however it ends."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from server.http import request
from server.ports import why_taken

from tests.e2e.programs import until
from tests.e2e.ray_server import ray_server
from tests.e2e.serve_ray_process import serve_ray
from tests.hosts_table import png

pytestmark = [pytest.mark.e2e, pytest.mark.alone]
SLOW_TEST = pytest.mark.skipif("SLOW_TESTS" not in os.environ, reason="takes half a minute; SLOW_TESTS=1 runs it")
SLOW = ("--batch-size", "64", "--batch-delay-ms")  # a request waits so long for others


class Asked(threading.Thread):
    """A request that is on its way."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            answer = request("POST", f"{self.address}/predictions/digits", png("seven"))
            self.outcome = (answer.status, answer.body)
        except OSError as error:
            self.outcome = (type(error).__name__, b"")


def test_ctrl_c_answers_what_is_on_its_way_and_refuses_what_is_new(model_store: Path, tmp_path: Path) -> None:
    with serve_ray(tmp_path, str(model_store / "digits.mar"), *SLOW, "3000") as server:
        server.wait_ready()
        asked = [Asked(server.address) for _ in range(4)]
        time.sleep(1)
        server.press_ctrl_c()
        until(lambda: "stopping" in server.said())
        until(lambda: request("GET", f"{server.address}/ping").status == 503)
        refused = request("POST", f"{server.address}/predictions/digits", png("seven"))
        seconds = server.wait()
        for each in asked:
            each.join()
        assert [each.outcome[0] for each in asked] == [200] * 4
        assert (refused.status, json.loads(refused.body)["type"]) == (503, "Ending")
        assert refused.headers["retry-after"] == "1"
        assert server.process.returncode == 0
        print(f"ended {seconds:.1f} s after Ctrl-C, with requests that took 2 s of it")
        end = server.said().partition("stopping")[2]
        assert "30 s" in end
        assert len(end.splitlines()) == 1, end
        assert server.processes() == []
        assert server.files() == []


@SLOW_TEST
def test_it_ends_soon_if_nothing_is_on_its_way(model_store: Path, tmp_path: Path) -> None:
    with serve_ray(tmp_path, str(model_store / "digits.mar")) as server:
        server.wait_ready()
        assert request("POST", f"{server.address}/predictions/digits", png("seven")).status == 200
        server.process.send_signal(signal.SIGTERM)
        seconds = server.wait()
        print(f"ended {seconds:.1f} s after SIGTERM")
        assert seconds < 8  # 2 to 3 on a machine that does nothing else
        assert server.process.returncode == 0
        assert server.processes() == []
        assert server.files() == []


@SLOW_TEST
def test_a_second_ctrl_c_ends_it_at_once(model_store: Path, tmp_path: Path) -> None:
    with serve_ray(tmp_path, str(model_store / "digits.mar"), *SLOW, "25000") as server:
        server.wait_ready()
        asked = Asked(server.address)
        time.sleep(1)
        server.press_ctrl_c()
        until(lambda: request("GET", f"{server.address}/ping").status == 503)
        server.press_ctrl_c()
        assert server.wait() < 3
        assert server.process.returncode == 130
        assert server.processes() == []
        assert server.files() == []
        asked.join()
        assert asked.outcome[0] != 200


@SLOW_TEST
def test_what_a_killed_one_leaves_ends_by_itself(model_store: Path, tmp_path: Path) -> None:
    with serve_ray(tmp_path, str(model_store / "digits.mar")) as server:
        server.wait_ready()
        server.process.kill()
        server.process.wait()
        until(lambda: server.processes() == [], 15)
        assert why_taken("127.0.0.1", server.port) is None
        assert [name for name in server.files() if "/logs/" not in name and name != "ray/session_latest"] == []


@SLOW_TEST
def test_the_next_start_ends_what_a_killed_one_has_left(model_store: Path, tmp_path: Path) -> None:
    """Its keeper was killed, too."""
    archive = str(model_store / "digits.mar")
    with serve_ray(tmp_path, archive) as server:
        server.wait_ready()
        (keeper,) = (process for process in server.processes() if "ray_host.keeper" in process.cmdline())
        keeper.kill()
        server.process.kill()
        server.process.wait()
        (haproxy,) = (process for process in server.processes() if process.name() == "haproxy")
        with serve_ray(tmp_path, archive, port=server.port, temporary=server.temporary) as following:
            following.wait_ready()
            assert "an earlier serve-ray was killed" in following.said()
            assert not haproxy.is_running()
            assert request("POST", f"{following.address}/predictions/digits", png("seven")).status == 200


@SLOW_TEST
def test_a_request_that_takes_longer_than_the_limit_gets_a_503(model_store: Path, tmp_path: Path) -> None:
    model = {"archive": str(model_store / "digits.mar"), "num_gpus": 0, "batch_size": 64, "max_delay_ms": 60_000}
    with ray_server(tmp_path, patience_s=1) as server:
        server.serve({"models": [model], "front_num_cpus": 0})
        asked = Asked(server.address)
        time.sleep(1)
        server.end()
    asked.join()
    assert asked.outcome[0] == 503
    assert json.loads(asked.outcome[1])["type"] == "Ending"
