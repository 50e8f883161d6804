"""Measure what a client gets from TorchServe, load generator and all: what scripts/bench_serving does."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from serving_bench import command
from serving_bench.load import GeneratorError
from torchserve import ServerError


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = command.parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        code: int = command.run(chosen)
    except KeyboardInterrupt:
        print("\nstopped; what was measured so far is in the JSON", file=sys.stderr)
        return 130
    except (OSError, ValueError, ServerError, GeneratorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip() if error.stderr else str(error)
        print(f"error: {Path(str(error.cmd[0])).name} failed: {said}", file=sys.stderr)
        return 1
    return code


def _stop(number: int, frame: FrameType | None) -> None:
    """Once: while the server is being ended, a second Ctrl-C would leave processes behind."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
