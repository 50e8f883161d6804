"""Serves one archive with Ray Serve until SIGTERM: `ray_serve_server.py JOB.json`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from ray_host import local


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        logs = local.start(local.HERE, job["port"], least_cpus=job["workers"])
        local.run(job["args"], logs)
        signal.pause()
    except KeyboardInterrupt:
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        reason = str(error)
    finally:
        local.stop()
    # After Ray's own last words, because who has started this shows the last lines.
    print(f"error: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
