"""Throughput of Ray replicas on one, two and three hosts, which are network namespaces of this machine.

Run it as root, on a machine with nothing else to do, with the interpreter of an environment that has Ray and this
project:

    .venv/bin/python scripts/research/ray_spread.py model_store/digits.mar --out ray-spread.json

All hosts share this machine's cores, so a network that computes would be no faster on three of them. So each run of
the network waits a fixed time instead (handlers/faults.py), and a replica answers --batch-size requests at a time: so
many replicas can answer replicas x batch size / seconds requests/s, and no more. What is missing to that is what Ray
takes: the ways through proxies, fronts and the network between the hosts. "busy" says how much of all cores was busy;
above 0.8, the cores are the limit and not Ray, and a longer wait is wanted.

Rows: replicas in proportion to the hosts, and the most replicas on one host alone. Clients ask all hosts in turn, as
behind a balancer.

Exit status: 0; 1 if an answer was wrong or missing; 3 if there are no namespaces here.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import ray_hosts

PATIENCE_S = 120


class Clients:
    """Clients that ask hosts in turn, each without a pause."""

    def __init__(self, hosts: list[str], count: int) -> None:
        self.hosts, self.lock, self.ends = hosts, threading.Lock(), threading.Event()
        self.seconds: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.wrong = 0
        self.threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]
        for thread in self.threads:
            thread.start()

    def _ask(self, number: int) -> None:
        while not self.ends.is_set():
            number += 1
            started = time.monotonic()
            status, right = ray_hosts.ask(number % 10, self.hosts[number % len(self.hosts)])
            with self.lock:
                self.statuses[status] += 1
                self.wrong += not right
                self.seconds.append(time.monotonic() - started)

    def forget(self) -> None:
        """Begin anew, after the warm-up."""
        with self.lock:
            self.seconds, self.statuses = [], Counter()

    def end(self) -> None:
        """Wait for the last answers."""
        self.ends.set()
        for thread in self.threads:
            thread.join()


def measured(hosts: list[str], replicas: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Ask replicas that run, and return the figures."""
    clients = Clients(hosts, chosen.clients_per_replica * replicas)
    try:
        time.sleep(chosen.warm_up)
        psutil.cpu_percent()
        clients.forget()
        started = time.monotonic()
        time.sleep(chosen.seconds)
        with clients.lock:
            took = time.monotonic() - started
            times, statuses = sorted(clients.seconds), dict(clients.statuses)
        busy = psutil.cpu_percent() / 100
    finally:
        clients.end()
    rate, most = statuses.get("200", 0) / took, chosen.batch_size * replicas / chosen.wait
    percentiles = statistics.quantiles(times, n=100) if len(times) > 1 else [0.0] * 99
    return {
        "requests_per_s": round(rate, 1),
        "most_per_s": round(most, 1),
        "share_of_most": round(rate / most, 3),
        "ms_p50": round(percentiles[49] * 1e3),
        "ms_p99": round(percentiles[98] * 1e3),
        "busy": round(busy, 2),
        "statuses": statuses,
        "wrong": clients.wrong,
    }


def row(hosts: list[str], replicas: int, chosen: argparse.Namespace, log: Any) -> dict[str, Any]:
    """Start a cluster of these hosts, each with CPUs for its part of the replicas, and measure it."""
    args = {
        "models": [
            {
                "archive": str(chosen.archive.resolve()),
                "name": "digits",
                "replicas": replicas,
                "num_gpus": 0,
                "batch_size": chosen.batch_size,
                "max_delay_ms": 0,
                "allow_other_version": True,
            }
        ],
        "fronts": len(hosts) * chosen.fronts_per_host,
        "front_num_cpus": 0,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(ray_hosts.namespaces(hosts))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        faults = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        (faults / "slow").write_text(str(chosen.wait), encoding="utf-8")
        environment = {**ray_hosts.ray_environment(), "TORCHSERVE_FAST_FAULTS": str(faults)}
        for host in hosts:
            stack.callback(ray_hosts.end, host)
        for host in hosts:
            ray_hosts.start(host, folder, environment, log, cpus=replicas // len(hosts))
        deployer = ray_hosts.Deployer(args, environment, log)
        until_whole(deployer, hosts, replicas)
        spread = {host: ray_hosts.replicas_on(host) for host in hosts}
        found = measured(hosts, replicas, chosen)
    return {"hosts": len(hosts), "replicas": replicas, "replicas_per_host": list(spread.values()), **found}


def until_whole(deployer: ray_hosts.Deployer, hosts: list[str], replicas: int) -> None:
    """Wait until all replicas run and each host answers. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if ray_hosts.is_whole(deployer, hosts, replicas) and all(
            ray_hosts.ask(7, host)[0] == "200" for host in hosts
        ):
            return
        time.sleep(0.5)
    raise TimeoutError(f"not all of {len(hosts)} hosts answer after {PATIENCE_S} s")


def conditions(chosen: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    command = ["git", "-C", str(ray_hosts.ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit,
        "ray": importlib.metadata.version("ray"),
        "cores": os.cpu_count(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "wait_s": chosen.wait,
        "fronts_per_host": chosen.fronts_per_host,
        "batch_size": chosen.batch_size,
        "seconds": chosen.seconds,
        "clients_per_replica": chosen.clients_per_replica,
    }


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("archive", type=Path, help="the demo's digits.mar")
    found.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 3], choices=(1, 2, 3))
    found.add_argument("--replicas-per-host", type=int, default=2)
    found.add_argument("--fronts-per-host", type=int, default=1)
    found.add_argument("--batch-size", type=int, default=1)
    found.add_argument("--wait", type=float, default=0.2, help="seconds that a run of the network takes")
    found.add_argument("--clients-per-replica", type=int, default=4)
    found.add_argument("--seconds", type=float, default=20, help="of load that is counted (default: %(default)s)")
    found.add_argument("--warm-up", type=float, default=5)
    found.add_argument("--out", type=Path, help="JSON; it is printed too")
    found.add_argument("--log", type=Path, default=Path("ray_spread.log"))
    return found


def main() -> int:
    chosen = parser().parse_args()
    most = max(chosen.hosts) * chosen.replicas_per_host
    points = [(hosts, hosts * chosen.replicas_per_host) for hosts in chosen.hosts]
    points += [(1, most)] if (1, most) not in points else []
    told: dict[str, Any] = {"conditions": conditions(chosen), "rows": []}
    with chosen.log.open("w") as log:
        for count, replicas in points:
            try:
                told["rows"].append(row(list(ray_hosts.HOSTS[:count]), replicas, chosen, log))
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"no network namespaces here: {getattr(error, 'stderr', None) or error}", file=sys.stderr)
                return 3
            print(json.dumps(told["rows"][-1]), flush=True)
    if chosen.out:
        chosen.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return int(any(found["wrong"] or set(found["statuses"]) != {"200"} for found in told["rows"]))


if __name__ == "__main__":
    sys.exit(main())
