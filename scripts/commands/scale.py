"""Have a number of workers serve a model, and wait until they do: what scripts/scale does."""

from __future__ import annotations

import argparse
import sys
import time

from tokens import add_server, client
from torchserve import ServerError

MOST = 128  # workers: a slip of the finger is not to fill the machine


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/scale",
        description="Have exactly WORKERS workers serve the model NAME, and wait until that is so.",
        epilog="Two workers a GPU let one decode while the other computes. 0 keeps the model registered, but idle. "
        "Scaling down ends workers at once: a request that one is busy with gets a 500.",
    )
    parser.add_argument("name", metavar="NAME", help="of the model, as it is registered")
    parser.add_argument("workers", metavar="WORKERS", type=int, help=f"0 to {MOST}")
    parser.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="seconds to wait for them (default: %(default)s)"
    )
    add_server(parser)
    chosen = parser.parse_args()
    if not 0 <= chosen.workers <= MOST:
        parser.error(f"WORKERS is {chosen.workers}; wanted: 0 to {MOST}, for each takes memory of its own")
    started, said = time.monotonic(), ""

    def tell(line: str) -> None:
        nonlocal said
        if line != said:
            print(line, flush=True)
        said = line

    try:
        client(chosen).scale(chosen.name, chosen.workers, chosen.timeout, tell)
    except (OSError, ServerError) as error:
        print(f"error: {error}; TorchServe may go on with it. This command takes it back", file=sys.stderr)
        return 1
    print(f"done in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
