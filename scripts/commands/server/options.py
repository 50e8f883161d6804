"""The command line's options that say which running TorchServe is meant."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.client import Client
from server.config import read_properties
from server.paths import CONFIG, ROOT

OTHER_PORTS = "If it runs on other ports, name the file that it was started with: --ts-config "


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


def explained(error: Exception, chosen: argparse.Namespace) -> str:
    """The error's message for a person. If no server answers, it says what to do too."""
    if isinstance(error, ConnectionError):
        return f"{error}. {_way_out(chosen)}"
    if isinstance(error, FileNotFoundError) and error.filename == str(chosen.ts_config):
        example = _written(chosen.folder) or "config.properties"
        return f"{error}. --ts-config names the file that TorchServe was started with, such as {example}"
    return str(error)


def _way_out(chosen: argparse.Namespace) -> str:
    start = "If no TorchServe runs, start one: scripts/serve. "
    return f"{start}{OTHER_PORTS}{_written(chosen.folder) or 'FILE'} (now: {chosen.ts_config})"


def _written(folder: Path) -> str:
    """The newest file that scripts/serve --port has written, as a person may type it; "" if there is none."""
    found = sorted((folder / "logs").glob("serve-*.properties"), key=lambda path: path.stat().st_mtime)
    if not found:
        return ""
    return str(found[-1].relative_to(ROOT) if found[-1].is_relative_to(ROOT) else found[-1])
