"""Ray Serve on a head and two workers: an update loses no request, and a worker's death gives no wrong answer.

The hosts are network namespaces of this machine (scripts/research/ray_cluster), which need root and `ip`. One cluster
serves all tests here, in order. They take minutes, so they run only if SLOW_TESTS is set.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray_hosts
from ray_cluster import clients, cluster, network
from ray_cluster.cluster import Cluster, until

from tests.e2e.ray_server import python

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.alone,
    pytest.mark.skipif("SLOW_TESTS" not in os.environ, reason="takes minutes; SLOW_TESTS=1 runs it"),
]
REPLICAS = 2
LOAD_S = 3.0
WAIT_S = 120
LONGEST_S = 60  # that a request may wait
FIGURES = {8404: "/stats", 9101: "/metrics"}  # Ray's ports for HAProxy's own pages
FRONTS = range(30_000, 30_100)  # Ray Serve's ports for fronts
CLEAN = re.compile(r"200|50[034] [A-Za-z]+")  # an answer, or an error in JSON with its type


@pytest.fixture(scope="module")
def ray(model_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := network.why_not():
        pytest.skip(reason)
    interpreter = str(python())
    path = tmp_path_factory.mktemp("ray") / "ray.log"
    with path.open("w") as log, cluster.running(ray_hosts.CPUS, log, interpreter) as running:
        yield running


def status_of(url_host: str, port: int, path: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(network.address(url_host), port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def outcomes(told: dict[str, Any]) -> dict[str, int]:
    print(told)
    assert all(told[part]["statuses"].get(clients.RIGHT, 0) > 20 for part in ("before", "after"))
    assert [told[part]["wrong"] for part in ("before", "during", "after")] == [0, 0, 0]
    assert told["is_whole"], "the replicas that were wanted did not come"
    found: dict[str, int] = {}
    for part in ("before", "during", "after"):
        for outcome, count in told[part]["statuses"].items():
            found[outcome] = found.get(outcome, 0) + count
    return found


def test_without_an_application_clients_get_a_503_in_json(ray: Cluster) -> None:
    assert until(lambda: clients.ask(7, ray_hosts.HEAD)[0] != "ConnectionRefusedError", WAIT_S)
    assert clients.ask(7, ray_hosts.HEAD)[0] == "503 FrontUnavailable"
    status, headers, _ = status_of(ray_hosts.HEAD, cluster.HTTP_PORT, clients.PATH)
    assert (status, headers["content-type"], headers["retry-after"]) == (503, "application/json", "1")


def test_replicas_are_spread_over_the_workers_and_all_of_them_answer(ray: Cluster, model_store: Path) -> None:
    ray.serve(ray_hosts.args(model_store / "digits.mar", REPLICAS))
    assert ray_hosts.count_of(ray) == {ray_hosts.HEAD: 0, ray_hosts.OTHER: 1, ray_hosts.VICTIM: 1}
    processes = [psutil.Process(pid) for pids in ray.replicas().values() for pid in pids]
    before = [process.cpu_times().user for process in processes]
    with clients.Load([ray_hosts.HEAD], ray_hosts.CLIENTS) as load:
        time.sleep(LOAD_S)
        told = load.taken()
    assert (set(told["statuses"]), told["wrong"]) == ({clients.RIGHT}, 0)
    assert all(process.cpu_times().user > used + 0.05 for process, used in zip(processes, before, strict=True))


@pytest.mark.parametrize("port", FIGURES)
def test_haproxys_figures_are_for_its_own_machine(port: int, ray: Cluster) -> None:
    for host in ray.hosts:
        with socket.socket() as probe:
            probe.settimeout(5)
            with pytest.raises(ConnectionRefusedError):
                probe.connect((network.address(host), port))
        code = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}{FIGURES[port]}').status)"
        told = subprocess.run(
            network.inside(host, str(python()), "-c", code), capture_output=True, text=True, check=False
        )
        assert told.stdout == "200\n", told.stderr


def test_a_front_answers_the_clusters_haproxys_alone(ray: Cluster) -> None:
    found = [(host, pid) for host, pids in ray.replicas("front").items() for pid in pids]
    assert len(found) == 2
    for host, pid in found:
        code = f"import psutil; print(*(each.laddr.port for each in psutil.Process({pid}).net_connections('tcp')))"
        told = subprocess.run(
            network.inside(host, str(python()), "-c", code), capture_output=True, text=True, check=True
        )
        ports = set(map(int, told.stdout.split())) & set(FRONTS)
        status, _, body = status_of(host, ports.pop(), "/predictions/digits")
        assert (status, b"FrontUnavailable" in body) == (503, True)


def test_an_update_on_several_hosts_loses_no_request(ray: Cluster, model_store: Path) -> None:
    """To another version, with another batch size."""
    wanted = ray_hosts.args(model_store / "digits2.mar", REPLICAS, batch_size=ray_hosts.UPDATED_BATCH)
    told = ray_hosts.update(ray, wanted, LOAD_S)
    assert outcomes(told).keys() == {clients.RIGHT}
    assert b'{"digits": ["2.0"]}' in status_of(ray_hosts.HEAD, cluster.HTTP_PORT, "/models")[2]


def test_a_workers_death_gives_answers_or_clean_errors(ray: Cluster) -> None:
    assert ray.replicas()[ray_hosts.VICTIM]
    told = ray_hosts.death(ray, "kill", REPLICAS, LOAD_S)
    assert [outcome for outcome in outcomes(told) if not CLEAN.fullmatch(outcome)] == []
    assert max(told[part]["slowest_s"] for part in ("during", "after")) < LONGEST_S
    assert not ray.replicas()[ray_hosts.VICTIM]
    assert set(told["after"]["statuses"]) == {clients.RIGHT}


def test_after_the_application_clients_get_a_503_in_json(ray: Cluster) -> None:
    ray.delete()
    assert until(lambda: clients.ask(7, ray_hosts.HEAD)[0] == "503 FrontUnavailable", WAIT_S)
