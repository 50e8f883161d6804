"""A real Prometheus scrapes a real TorchServe: alerts, figures and every query of the dashboard."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server import tokens

from tests.e2e.programs import (
    DEPLOYMENT,
    SAMPLES,
    Client,
    ended,
    free_ports,
    program,
    read_properties,
    request,
    until,
)

pytestmark = pytest.mark.e2e

SEVEN = (SAMPLES / "seven.png").read_bytes()
RULES = DEPLOYMENT / "prometheus"
BAD = b"no image, and longer than an option is " * 9
# What a machine without a GPU, whose requests all went well, does not report.
ABSENT = re.compile(r"GPU|gpu_memory|ALERTS")


class Prometheus:
    """The API of a running Prometheus."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}/api/v1"

    def ask(self, path: str, **query: str) -> Any:
        answer = request("GET", f"{self.address}/{path}?{urllib.parse.urlencode(query)}").json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, query: str) -> list[float]:
        return [float(item["value"][1]) for item in self.ask("query", query=query)["result"]]


@pytest.fixture(scope="module")
def prometheus(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus with the project's own files, but scraping each second, and this TorchServe's port."""
    folder, (port,) = tmp_path_factory.mktemp("prometheus"), free_ports(1)
    text = (RULES / "prometheus.yml").read_text(encoding="utf-8").replace("15s", "1s")
    target = urllib.parse.urlparse(client.config["metrics_address"]).netloc
    (folder / "prometheus.yml").write_text(text.replace("127.0.0.1:8082", target), encoding="utf-8")
    (folder / "alerts.yml").write_text((RULES / "alerts.yml").read_text(encoding="utf-8"), encoding="utf-8")
    command = [program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    running = Prometheus(port)
    with ended(process):
        until(lambda: process.poll() is not None or scraped(running))
        assert process.poll() is None, (folder / "log").read_text()
        yield running


def scraped(running: Prometheus) -> bool:
    try:
        return running.values('up{job="torchserve"}') == [1.0]
    except (OSError, ValueError):  # it does not listen yet, or answers that it is not ready
        return False


@pytest.fixture(scope="module")
def traffic(client: Client, prometheus: Prometheus) -> None:
    """Good and bad requests, until Prometheus has the rates that they make."""
    for _ in range(4):
        headers = tokens.bearer(client.token("inference")) | {"X-Request-Start": f"t={time.time() - 0.2:.3f}"}
        request("POST", f"{client.inference}/predictions/digits", SEVEN, headers)
        client.predict("digits", BAD)
        client.predict("sentences", b"A sentence.", "text/plain")
        time.sleep(1.1)  # a scrape between them: rates need several
    until(lambda: len(prometheus.values("torchserve:queue_seconds:mean1m")) == 2)
    until(lambda: len(prometheus.values("torchserve:batch_size:mean5m")) == 2)


@pytest.mark.usefixtures("traffic")
def test_figures_are_those_of_the_traffic(prometheus: Prometheus) -> None:
    assert all(0 < value < 60 for value in prometheus.values("torchserve:latency_seconds:mean5m"))
    assert all(0 < value < 60 for value in prometheus.values("torchserve:queue_seconds:mean1m"))
    assert all(1 <= value <= 8 for value in prometheus.values("torchserve:batch_size:mean5m"))
    p99 = [value for value in prometheus.values("torchserve:batch_seconds:p99_5m") if not math.isnan(value)]
    assert len(p99) >= 2  # models without traffic have none
    assert all(0 < value < 60 for value in p99)
    (waited,) = [value for value in prometheus.values("torchserve:queue_seconds:p99_5m") if not math.isnan(value)]
    assert 0.2 < waited < 60  # only requests for digits said when they came
    steps = {
        item["metric"]["Step"] for item in prometheus.ask("query", query="torchserve:step_seconds:p99_5m")["result"]
    }
    assert steps == {"read", "prepare", "run", "write"}
    kinds = {item["metric"]["kind"] for item in prometheus.ask("query", query="torchserve:requests:rate5m")["result"]}
    assert {"2xx", "4xx"} <= kinds


@pytest.mark.usefixtures("traffic")
def test_errors_workers_and_tokens_are_told_by_their_labels(prometheus: Prometheus) -> None:
    errors = prometheus.ask("query", query='RequestErrors{ModelName="digits"}')["result"]
    assert ("415", "UnsupportedMediaType") in {
        (error["metric"]["Status"], error["metric"]["Type"]) for error in errors
    }
    workers = prometheus.ask("query", query="torchserve:worker:info")["result"]
    assert {worker["metric"]["ModelName"] for worker in workers} >= {"digits", "sentences"}
    assert {worker["metric"]["Precision"] for worker in workers} == {"fp32"}
    names = {worker["metric"]["WorkerName"] for worker in workers}
    loads = prometheus.ask("query", query="WorkerLoadTime")["result"]
    assert names <= {load["metric"]["WorkerName"] for load in loads}
    assert all(50e6 < value < 10e9 for value in prometheus.values("torchserve:worker_memory:bytes"))
    until(lambda: sum(prometheus.values('TokensUsed{ModelName="sentences"}')) >= 4 * 5)


@pytest.mark.usefixtures("traffic")
def test_every_query_of_the_dashboard_is_answered(prometheus: Prometheus) -> None:
    for panel in json.loads((DEPLOYMENT / "grafana" / "torchserve.json").read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", []):
            query = (
                target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$model", ".*")
            )
            found = prometheus.values(query)
            assert found or ABSENT.search(query), query


@pytest.mark.usefixtures("traffic")
def test_rules_are_loaded_and_well(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 15
    assert {rule["health"] for rule in rules} == {"ok"}
    names = {rule["name"] for rule in rules if rule["type"] == "alerting"}
    assert {"ModelStuck", "ModelFails", "ServerRefuses", "TorchServeDown"} <= names
    firing = [
        alert["labels"]["alertname"] for alert in prometheus.ask("alerts")["alerts"] if alert["state"] == "firing"
    ]
    assert not {"TorchServeDown", "ModelStuck", "ModelFails", "ServerRefuses"} & set(firing)


def test_the_metrics_port_wants_no_token_and_has_nothing_else(client: Client) -> None:
    metrics = client.config["metrics_address"]
    assert request("GET", f"{metrics}/metrics").status == 200
    for method, path in (("GET", "/models"), ("POST", "/predictions/digits"), ("POST", "/models?url=digits.mar")):
        assert request(method, f"{metrics}{path}").status in (404, 405)


def test_every_metric_that_is_named_is_declared(client: Client) -> None:
    """Those of rules and dashboard: TorchServe drops what handlers/metrics.yaml does not declare."""
    declared = Path(read_properties(client.folder / "config.properties")["metrics_config"]).read_text(
        encoding="utf-8"
    )
    texts = [(RULES / "alerts.yml"), (DEPLOYMENT / "grafana" / "torchserve.json")]
    named = set()
    for path in texts:
        named |= set(
            re.findall(
                r"\b(ts_[a-z_]+|[A-Z][A-Za-z0-9]+(?:_(?:sum|count|bucket))?)(?:\{|\[| >)", path.read_text("utf-8")
            )
        )
    assert len(named - {"ALERTS"}) > 15
    assert {name for name in named - {"ALERTS"} if f"name: {name}," not in declared} == set()


def test_promtool_accepts_rules_and_their_cases() -> None:
    promtool = program("promtool")
    for arguments in (("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")):
        done = subprocess.run([promtool, *arguments], cwd=RULES, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_up_to_date() -> None:
    subprocess.run([sys.executable, str(DEPLOYMENT / "dashboard.py"), "--check"], check=True)
