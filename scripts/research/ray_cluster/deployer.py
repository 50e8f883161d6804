"""Deploys on a cluster, from its head: `deployer.py HEAD:PORT HTTP_PORT`, run by an environment with Ray.

Ray Serve runs when it prints "ready". Each line of the standard input is a JSON object:

    {"serve": ARGS}  serves the application of these args, in place of the one before: "ready", or "error" and why
    {"delete": 1}    ends the application: "ready"
    {"state": 1}     "state", and in JSON the replicas by deployment and state, and the hosts that Ray takes for alive
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray
from ray import serve
from ray_host import failures
from ray_host.app import build

APP = "models"


def main() -> None:
    context = ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    logs = f"{context.address_info['session_dir']}/logs"
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    options = {"host": "0.0.0.0", "port": int(sys.argv[2]), "location": "EveryNode"}  # noqa: S104 - as cluster.yaml has it
    serve.start(proxy_location="EveryNode", http_options=options, logging_config=quiet)
    print("ready", flush=True)
    for line in sys.stdin:
        print(answer(json.loads(line), logs), flush=True)


def answer(asked: dict[str, Any], logs: str) -> str:
    if "serve" in asked:
        try:
            serve.run(build(asked["serve"]), name=APP, route_prefix="/")
        except Exception as error:  # Ray has many classes of errors
            return f"error {failures.of_models(serve.status().applications, APP, error, logs)}"
    if "delete" in asked:
        serve.delete(APP)
    return f"state {json.dumps(state(), default=str)}" if "state" in asked else "ready"


def state() -> dict[str, Any]:
    overview = serve.status().applications.get(APP)
    deployments = overview.deployments.items() if overview else ()
    alive = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
    return {**{name: dict(told.replica_states) for name, told in deployments}, "alive": alive}


if __name__ == "__main__":
    main()
