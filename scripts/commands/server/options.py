"""The command line's options that say which running TorchServe is meant."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.client import Client
from server.config import read_properties
from server.paths import CONFIG, ROOT


def add_server_options(parser: argparse._ActionsContainer) -> None:
    """Add --folder and --ts-config."""
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT,
        metavar="DIR",
        help="the folder that torchserve was started in; it holds key_file.json and logs/ (default: the checkout)",
    )
    parser.add_argument(
        "--ts-config",
        type=Path,
        default=CONFIG,
        metavar="FILE",
        help="the config.properties that it was started with: its ports stand there (default: %(default)s)",
    )


def client_of(chosen: argparse.Namespace) -> Client:
    """A client of the TorchServe that the options mean. Raises OSError if its config.properties cannot be read."""
    return Client(chosen.folder, read_properties(chosen.ts_config))
