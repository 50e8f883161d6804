"""Print a valid token for a running TorchServe: what scripts/token does."""

from __future__ import annotations

import argparse
import sys

from server.errors import ServerError
from server.options import add_server_options, client_of, explained

EPILOG = """\
examples:
  curl -H "Authorization: Bearer $(scripts/token)" -T photo.jpg http://127.0.0.1:8080/predictions/resnet101
  curl -H "Authorization: Bearer $(scripts/token management)" http://127.0.0.1:8081/models
  scripts/token --ts-config logs/serve-9080.properties      for a server of scripts/serve --port 9080

A token is valid for the minutes that config.properties gives (token_expiration_min, 60).

Exit status: 0; 1 if there is no token, with the reason on standard error.
"""


def main() -> int:
    chosen = parser().parse_args()
    try:
        print(client_of(chosen).token(chosen.kind))
    except (OSError, ServerError) as error:
        print(f"error: {explained(error, chosen)}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    found = argparse.ArgumentParser(
        prog="scripts/token",
        description="Print a valid token for a running TorchServe. A token that has expired is renewed first.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "kind",
        nargs="?",
        choices=("inference", "management"),
        default="inference",
        help="inference: for predictions; management: for the management API (default: %(default)s)",
    )
    add_server_options(found)
    return found


if __name__ == "__main__":
    sys.exit(main())
