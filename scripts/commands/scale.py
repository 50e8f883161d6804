"""Have a number of workers serve a model, and wait until they do: what scripts/scale does."""

from __future__ import annotations

import argparse
import sys
import time

from argument_types import seconds
from server.errors import NotReadyError, ServerError
from server.options import add_server_options, client_of, explained
from updates.locking import locked
from updates.scaling import scale

MOST = 128  # workers: a typing error must not fill the machine
DESCRIPTION = """\
Have exactly WORKERS workers serve the model NAME, and wait until they are ready. If a worker cannot load the model,
the reason is printed in one line, with the path of the log.
"""
EPILOG = """\
examples:
  scripts/scale digits 2       two workers: on a GPU one decodes images while the other computes
  scripts/scale digits 1       also tells why the worker of a model that was just registered does not start
  scripts/scale digits 0       keeps the model registered, without workers
  scripts/scale digits 2 --ts-config logs/serve-9080.properties      for a server of scripts/serve --port 9080

Scaling down loses no request: a worker gets no more requests before it ends, and workers end one after the other.
With --now they end at once, and a request that one of them is working on gets a 500. With 0 workers TorchServe
refuses all requests; those that came before are answered.

Exit status: 0 once the workers are ready; 1 if they are not, with the reason on standard error; 2 for a wrong command
line.
"""


def main() -> int:
    chosen = parser().parse_args()
    started = time.monotonic()
    try:
        with locked(chosen.folder):
            scale(client_of(chosen), chosen.name, chosen.workers, chosen.timeout, Changes(), now=chosen.now)
    except (OSError, ServerError) as error:
        print(f"error: {explained(error, chosen)}", file=sys.stderr)
        if isinstance(error, NotReadyError):
            print(f"TorchServe may go on starting workers; scripts/scale {chosen.name} 0 ends that", file=sys.stderr)
        return 1
    print(f"done in {time.monotonic() - started:.1f} s")
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    found = argparse.ArgumentParser(
        prog="scripts/scale",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("name", metavar="NAME", help="the model's name in requests, as in /predictions/NAME")
    found.add_argument("workers", metavar="WORKERS", type=_workers, help=f"how many, 0 to {MOST}")
    found.add_argument(
        "--timeout", type=seconds, default=600.0, metavar="S", help="seconds to wait for them (default: %(default)g)"
    )
    found.add_argument("--now", action="store_true", help="end workers at once; the requests that they have fail")
    add_server_options(found)
    return found


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > MOST:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted: 0 to {MOST}, because each takes memory of its own")
    return int(text)


class Changes:
    """Prints a line if it differs from the last one."""

    def __init__(self) -> None:
        self.last = ""

    def __call__(self, line: str) -> None:
        if line != self.last:
            print(line, flush=True)
        self.last = line


if __name__ == "__main__":
    sys.exit(main())
