"""Throughput of Ray replicas on one, two and three hosts, which are network namespaces of this machine.

Run it as root, on a machine with nothing else to do, with the interpreter of an environment that has Ray and this
project:

    export PYTHONPATH=.:scripts/commands
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
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from ray_cluster import clients, cluster, network
from ray_cluster.cluster import Cluster
from server.paths import ROOT

PATIENCE_S = 120


def measured(hosts: list[str], replicas: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Ask replicas that run, and return the figures."""
    with clients.Load(hosts, chosen.clients_per_replica * replicas, half_keep=False) as load:
        time.sleep(chosen.warm_up)
        psutil.cpu_percent()
        load.taken()
        started = time.monotonic()
        time.sleep(chosen.seconds)
        told = load.taken()
        took = time.monotonic() - started
        busy = psutil.cpu_percent() / 100
    times, statuses = sorted(told["seconds"]), told["statuses"]
    rate, most = statuses.get(clients.RIGHT, 0) / took, chosen.batch_size * replicas / chosen.wait
    percentiles = statistics.quantiles(times, n=100) if len(times) > 1 else [0.0] * 99
    return {
        "requests_per_s": round(rate, 1),
        "most_per_s": round(most, 1),
        "share_of_most": round(rate / most, 3),
        "ms_p50": round(percentiles[49] * 1e3),
        "ms_p99": round(percentiles[98] * 1e3),
        "busy": round(busy, 2),
        "statuses": statuses,
        "wrong": told["wrong"],
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
    cpus = {host: replicas // len(hosts) for host in hosts}
    with tempfile.TemporaryDirectory(prefix="faults-") as faults:
        Path(faults, "slow").write_text(str(chosen.wait), encoding="utf-8")
        with cluster.running(cpus, log, more={"TORCHSERVE_FAST_FAULTS": faults}) as running:
            running.serve(args)
            until_whole(running, hosts, replicas)
            spread = [len(pids) for pids in running.replicas().values()]
            found = measured(hosts, replicas, chosen)
    return {"hosts": len(hosts), "replicas": replicas, "replicas_per_host": spread, **found}


def until_whole(running: Cluster, hosts: list[str], replicas: int) -> None:
    """Wait until all replicas run and each host answers. Raises TimeoutError."""

    def is_whole() -> bool:
        return running.is_whole(hosts, replicas) and all(clients.ask(7, host)[0] == clients.RIGHT for host in hosts)

    if not cluster.until(is_whole, PATIENCE_S):
        raise TimeoutError(f"not all of {len(hosts)} hosts answer after {PATIENCE_S} s")


def conditions(chosen: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
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
    if reason := network.why_not():
        print(reason, file=sys.stderr)
        return 3
    with chosen.log.open("w") as log:
        for count, replicas in points:
            told["rows"].append(row(list(network.HOSTS[:count]), replicas, chosen, log))
            print(json.dumps(told["rows"][-1]), flush=True)
    if chosen.out:
        chosen.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return int(any(found["wrong"] or set(found["statuses"]) != {"200"} for found in told["rows"]))


if __name__ == "__main__":
    sys.exit(main())
