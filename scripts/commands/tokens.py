"""Print a valid token for a running TorchServe, renewed where it has expired: what scripts/token does."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torchserve import ROOT, Client, ServerError, read_properties


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/token",
        description="Print a valid token for a running TorchServe; one that has expired is renewed first.",
        epilog="""curl -H "Authorization: Bearer $(scripts/token)" -T photo.jpg http://127.0.0.1:8080/predictions/resnet101""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "kind", nargs="?", choices=("inference", "management"), default="inference", help="(default: %(default)s)"
    )
    add_server(parser)
    chosen = parser.parse_args()
    try:
        print(client(chosen).token(chosen.kind))
    except (OSError, ServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def add_server(parser: argparse._ActionsContainer) -> None:
    """The options that say which server is meant."""
    parser.add_argument(
        "--folder", type=Path, default=ROOT, help="where torchserve was started (default: the checkout)"
    )
    parser.add_argument("--ts-config", type=Path, default=ROOT / "config.properties", help="(default: %(default)s)")


def client(chosen: argparse.Namespace) -> Client:
    """A client of the server that the options mean."""
    return Client(chosen.folder, read_properties(chosen.ts_config))


if __name__ == "__main__":
    sys.exit(main())
