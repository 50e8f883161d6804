"""Scaling, versions, tokens and the guards of config.properties, on a real TorchServe."""

from __future__ import annotations

import http.server
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlparse

import pytest
from demo import SAMPLES
from server.client import Client
from server.http import request
from server.process import Server

pytestmark = pytest.mark.e2e

SEVEN = (SAMPLES / "seven.png").read_bytes()


def answers_seven(client: Client, path: str = "") -> bool:
    answer = client.predict("digits", SEVEN, path=path)
    return answer.status == 200 and answer.json()[0]["label"] == "7"


def test_description_says_what_serves(client: Client) -> None:
    described = client.customized("digits")
    assert described["engine"]["name"] in ("onnxruntime", "torch_eager")  # whichever was measured the faster one
    assert described["precision"] == {"name": "fp32", "why": "asked for"}
    assert described["device"]["name"]
    assert described["archive"]["digest"].startswith("sha256:")
    assert described["reading"] == "up to 16384 bytes at once"
    assert client.customized("sentences")["task"] == "embeddings"


def test_load_is_logged_with_engine_precision_and_device(server: Server) -> None:
    log = (server.folder / "logs" / "model_log.log").read_text(encoding="utf-8")
    lines = [line for line in log.splitlines() if "precision fp32 (asked for), device" in line]
    said = [line.split(" MODEL_LOG - ")[1] for line in lines]
    for start in (r"digits: engine (onnxruntime|torch_eager), precision", r"sentences: engine \w+, precision"):
        assert any(re.match(start, line) for line in said)


def test_archive_settings_reach_torchserve(client: Client) -> None:
    described = client.describe("digits")
    assert (described["batchSize"], described["maxBatchDelay"], described["minWorkers"]) == (8, 1, 1)


def test_scale_up_and_down(client: Client) -> None:
    client.scale("digits", 3)
    assert len({worker["pid"] for worker in client.describe("digits")["workers"]}) == 3
    assert all(answers_seven(client) for _ in range(6))
    client.scale("digits", 1)
    assert len(client.describe("digits")["workers"]) == 1
    assert answers_seven(client)


@pytest.fixture
def second_version(client: Client) -> Iterator[None]:
    query = {"url": "digits2.mar", "model_name": "digits", "initial_workers": 1, "synchronous": "true"}
    answer = client.manage("POST", "/models", query)
    assert answer.status == 200, answer.body
    yield
    client.manage("PUT", "/models/digits/1.0/set-default")
    client.manage("DELETE", "/models/digits/2.0")


@pytest.mark.usefixtures("second_version")
def test_second_version_beside_the_first(client: Client) -> None:
    versions = client.manage("GET", "/models/digits/all").json()
    assert {described["modelVersion"] for described in versions} == {"1.0", "2.0"}
    assert answers_seven(client, "/1.0")
    assert answers_seven(client, "/2.0")
    assert client.describe("digits")["modelVersion"] == "1.0"
    assert client.manage("PUT", "/models/digits/2.0/set-default").status == 200
    assert client.describe("digits")["modelVersion"] == "2.0"
    assert answers_seven(client)


def test_unregister(client: Client) -> None:
    query = {"url": "digits.mar", "model_name": "fleeting", "initial_workers": 1, "synchronous": "true"}
    assert client.manage("POST", "/models", query).status == 200
    assert client.predict("fleeting", SEVEN).status == 200
    assert client.manage("DELETE", "/models/fleeting").status == 200
    assert client.predict("fleeting", SEVEN).status == 404


def test_tokens_are_required(client: Client) -> None:
    url = f"{client.inference}/predictions/digits"
    assert request("POST", url, SEVEN).status == 400
    wrong = {"Authorization": f"Bearer {client.token('management')}"}
    assert request("POST", url, SEVEN, wrong).status == 400
    inference = {"Authorization": f"Bearer {client.token('inference')}"}
    assert request("GET", f"{client.management}/models", headers=inference).status == 400
    assert request("GET", f"{client.management}/models").status == 400
    assert (client.folder / "key_file.json").stat().st_mode & 0o077 == 0


def test_only_this_machine_may_connect(client: Client) -> None:
    for key in ("inference_address", "management_address", "metrics_address"):
        assert urlparse(client.config[key]).hostname == "127.0.0.1"


@pytest.mark.parametrize("path", ["/models", "/workflows"])
def test_remote_archives_are_never_fetched(client: Client, path: str) -> None:
    asked = []

    class Bait(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with http.server.HTTPServer(("127.0.0.1", 0), Bait) as bait:
        thread = threading.Thread(target=bait.serve_forever)
        thread.start()
        answer = client.manage("POST", path, {"url": f"http://127.0.0.1:{bait.server_port}/model.mar"})
        bait.shutdown()
        thread.join()
    assert 400 <= answer.status < 500
    assert not asked


def test_archives_outside_the_model_store_are_refused(client: Client) -> None:
    assert 400 <= client.manage("POST", "/models", {"url": "../digits.mar", "model_name": "x"}).status < 500
    assert 400 <= client.manage("POST", "/models", {"url": "file:///etc/passwd", "model_name": "x"}).status < 500


@pytest.mark.parametrize("url", ["../digits.war", "file:///etc/passwd", "/etc/passwd", "file://localhost/etc/passwd"])
def test_workflows_outside_their_store_are_refused(client: Client, url: str) -> None:
    assert 400 <= client.manage("POST", "/workflows", {"url": url, "workflow_name": "x"}).status < 500
    assert client.manage("GET", "/workflows").json()["workflows"] == []


def test_killed_worker_comes_back(client: Client) -> None:
    (worker,) = client.describe("digits")["workers"]
    os.kill(worker["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        workers = client.describe("digits")["workers"]
        if [item["status"] for item in workers] == ["READY"] and workers[0]["pid"] != worker["pid"]:
            break
        time.sleep(0.2)
    assert answers_seven(client)
