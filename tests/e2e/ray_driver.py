"""Serves with a Ray of its own, for tests: `ray_driver.py PORT GRPC_PORT`, run by Ray's environment.

Each line of the standard input is the `args` of an application in JSON; "ready" or "error: ..." answers it.
"""

from __future__ import annotations

import json
import sys

from ray_host import local


def main() -> None:
    logs = local.start(local.HERE, int(sys.argv[1]), least_cpus=8, grpc_port=int(sys.argv[2]))
    try:
        for line in sys.stdin:
            try:
                local.run(json.loads(line), logs)
                print("ready", flush=True)
            except (ValueError, RuntimeError) as error:
                print(f"error: {error!r}", flush=True)
    finally:
        local.stop()


if __name__ == "__main__":
    main()
