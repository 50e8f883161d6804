"""Serves with a Ray of its own, for tests: `ray_driver.py PORT GRPC_PORT PATIENCE_S`, run by Ray's environment.

Each line of the standard input is the `args` of an application in JSON; "ready" or "error: ..." answers it. The line
"state" is answered by "state" and the number of replicas that run, by deployment, in JSON.
"""

from __future__ import annotations

import json
import sys

from ray_host import local


def main() -> None:
    logs = local.start(local.HERE, int(sys.argv[1]), least_cpus=8, grpc_port=int(sys.argv[2]))
    try:
        for line in sys.stdin:
            if line == "state\n":
                print("state", json.dumps(running()), flush=True)
                continue
            try:
                local.run(json.loads(line), logs)
                print("ready", flush=True)
            except (ValueError, RuntimeError) as error:
                print(f"error: {error!r}", flush=True)
    finally:
        local.stop(float(sys.argv[3]))


def running() -> dict[str, int]:
    """Replicas that answer, by deployment."""
    from ray import serve

    deployments = serve.status().applications[local.APP].deployments
    return {name: state.replica_states.get("RUNNING", 0) for name, state in deployments.items()}


if __name__ == "__main__":
    main()
