"""Serves one archive with Ray Serve until SIGTERM: `ray_serve_server.py JOB.json`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from ray_host import local


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        local.start(local.HERE, job["port"], least_cpus=job["workers"])
        local.run(job["args"])
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        local.stop()


if __name__ == "__main__":
    main()
