"""Make this machine a part of a Ray cluster, what scripts/deployment/ray/node does: `ray_node.py [OPTION ...]`.

The options are those of `ray start`. `ray_node.py stop [OPTION ...]` calls `ray stop`, and removes what it leaves.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ray_host import leftovers, node, tunables
from server.paths import ROOT

WAY_OUT = f"With {tunables.HA_PROXY}=0 on all machines of the cluster, Ray's own proxy reads the requests"


def main() -> None:
    """Become `ray start`. Raises SystemExit if HAProxy does not run, and after a stop."""
    ray = str(Path(sys.executable).with_name("ray"))
    if sys.argv[1:2] == ["stop"]:
        status = subprocess.run([ray, *sys.argv[1:]], check=False).returncode
        leftovers.remove_node_folders()
        sys.exit(status)
    environment = dict(os.environ)
    try:
        node.choose(environment)
    except OSError as error:
        sys.exit(f"error: {error}. {WAY_OUT}")
    os.chdir(ROOT)  # Ray's processes start in this folder
    os.execve(ray, [ray, "start", *sys.argv[1:]], environment)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
