"""Two workers and a head of Ray as network namespaces of this machine: what happens to requests if a host dies.

Run it as root, with the interpreter of an environment that has Ray and this project:

    export PYTHONPATH=.:scripts/commands
    .venv/bin/python scripts/research/ray_hosts.py model_store/digits.mar --death kill
    .venv/bin/python scripts/research/ray_hosts.py model_store/digits.mar --update model_store/digits2.mar

--death kill ends all processes of a worker at once; --death cut takes its network away, so that it hangs. --update
replaces the archive, and its batch size, before that. It prints one JSON object: replicas per host, and how many
requests got which status before, during and after. This shows behaviour and not speed, because all hosts share this
machine's cores. tests/e2e/test_ray_hosts.py makes the same steps.

Exit status: 0; 1 if an answer was wrong, or if replicas did not come in time; 3 if there are no namespaces here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_cluster import cluster, network
from ray_cluster.clients import Load
from ray_cluster.cluster import Cluster, until

HEAD, OTHER, VICTIM = network.HOSTS
# The head has no room for replicas of models.
CPUS = {HEAD: 0, OTHER: 4, VICTIM: 4}
CLIENTS = 6
PATIENCE_S = 180
UPDATED_BATCH = 4


def args(archive: Path, replicas: int, **more: Any) -> dict[str, Any]:
    """Return the args of an application that serves the demo's digits."""
    model = {"archive": str(archive.resolve()), "name": "digits", "replicas": replicas, "num_gpus": 0, **more}
    return {"models": [model], "fronts": 2, "front_num_cpus": 0}


def while_asked(hosts: list[str], seconds: float, change: Callable[[], bool]) -> dict[str, Any]:
    """Ask hosts, change something, and ask on.

    Args:
        hosts: that are asked.
        seconds: of load before the change and after it.
        change: makes it, and returns whether all was well.

    Returns what clients got `before`, `during` and `after`, the `seconds` of the change, and what it returned as
    `is_whole`.
    """
    with Load(hosts, CLIENTS) as load:
        time.sleep(seconds)
        before, started = _taken(load), time.monotonic()
        is_whole = change()
        took = round(time.monotonic() - started, 1)
        during = _taken(load)
        time.sleep(seconds)
        after = _taken(load)
    return {"before": before, "during": during, "after": after, "seconds": took, "is_whole": is_whole}


def _taken(load: Load) -> dict[str, Any]:
    """What came since the last call, with the slowest request alone of all times."""
    found = load.taken()
    slowest = max(found.pop("seconds"), default=0.0)
    return {**found, "slowest_s": round(slowest, 2)}


def update(running: Cluster, wanted: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Replace the replicas by those of other args, while all hosts are asked. See while_asked."""
    old = set().union(*running.replicas().values())
    count = wanted["models"][0]["replicas"]

    def change() -> bool:
        running.serve(wanted)
        return until(lambda: _are_new(running, old, count), PATIENCE_S)

    return {**while_asked(running.hosts, seconds, change), "replicas_per_host": count_of(running)}


def death(running: Cluster, kind: str, replicas: int, seconds: float) -> dict[str, Any]:
    """Let the last host die, while the others are asked, until as many replicas answer on those. See while_asked.

    Args:
        kind: "kill" or "cut".
        replicas: that are wanted.
    """
    others = [host for host in running.hosts if host != VICTIM]
    fronts = count_of(running, "front")

    def change() -> bool:
        network.end(VICTIM) if kind == "kill" else network.cut(VICTIM)
        return until(lambda: running.is_whole(others, replicas), PATIENCE_S)

    found = while_asked(others, seconds, change)
    return {**found, "death": kind, "victim": VICTIM, "fronts_before": fronts, "replicas_per_host": count_of(running)}


def count_of(running: Cluster, deployment: str = "digits") -> dict[str, int]:
    """Return how many replicas of a deployment are on each host."""
    return {host: len(pids) for host, pids in running.replicas(deployment).items()}


def _are_new(running: Cluster, old: set[int], count: int) -> bool:
    found = set().union(*running.replicas().values())
    return len(found) == count and not found & old and running.state()["digits"] == {"RUNNING": count}


def is_well(told: dict[str, Any]) -> bool:
    """Return whether a change ended, and no answer was wrong."""
    return told["is_whole"] and not any(told[part]["wrong"] for part in ("before", "during", "after"))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("archive", type=Path, help="the demo's digits.mar")
    found.add_argument("--death", choices=("kill", "cut", "none"), default="kill")
    found.add_argument("--update", type=Path, metavar="FILE.mar", help="another archive of the demo's digits")
    found.add_argument("--replicas", type=int, default=3)
    found.add_argument("--seconds", type=float, default=5, help="of load before and after (default: %(default)s)")
    found.add_argument("--other-version", action="store_true", help="take an archive of other handlers than these")
    found.add_argument("--log", type=Path, default=Path("ray_hosts.log"))
    return found


def main() -> int:
    chosen = parser().parse_args()
    if reason := network.why_not():
        print(reason, file=sys.stderr)
        return 3
    more = {"allow_other_version": chosen.other_version}
    told: dict[str, Any] = {}
    with chosen.log.open("w") as log, cluster.running(CPUS, log) as running:
        running.serve(args(chosen.archive, chosen.replicas, **more))
        told["replicas_per_host"] = count_of(running)
        if chosen.update:
            wanted = args(chosen.update, chosen.replicas, batch_size=UPDATED_BATCH, **more)
            told["update"] = update(running, wanted, chosen.seconds)
        if chosen.death != "none":
            told["death"] = death(running, chosen.death, chosen.replicas, chosen.seconds)
        told["end"] = running.state()
    print(json.dumps(told, indent=1))
    return int(not all(is_well(told[step]) for step in ("update", "death") if step in told))


if __name__ == "__main__":
    sys.exit(main())
