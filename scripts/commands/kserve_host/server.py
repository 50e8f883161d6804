"""Serve archives by KServe's ModelServer: what scripts/serve-kserve does."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kserve import ModelServer
from kserve.model_server import app
from kserve.model_server import parser as kserve_parser

from kserve_host.archive_model import ArchiveModel
from kserve_host.figures import Figures
from kserve_host.routes import Door

DESCRIPTION = """\
Serve model archives by KServe's own model server, without TorchServe and without Java.

Most people need only --http_port, --host and the options that follow --host. The others are KServe's own.
"""
EPILOG = """\
examples:
  scripts/serve-kserve model_store/digits.mar
  scripts/serve-kserve --http_port 9080 model_store/digits.mar model_store/sentences.mar
  curl -X POST -T archive/digits/samples/seven.png http://127.0.0.1:9080/predictions/digits

There are no tokens: whoever reaches the port is answered. docs/kserve-triton.md has more.

Exit status: 0 after Ctrl-C; 1 if an archive cannot be served, with the reason; 2 for a wrong command line.
"""
MOST_BYTES = 16 << 20  # as TorchServe has it in this tree's config.properties
MOST_WAITING = 1000


class Server(ModelServer):  # type: ignore[misc, unused-ignore]
    """KServe's server on one address, which closes its models when it ends."""

    def __init__(self, host: str, models: Sequence[ArchiveModel]) -> None:
        super().__init__(enable_grpc=False, enable_latency_logging=False)
        self._host, self._models = host, models
        logging.getLogger("kserve.trace").setLevel(logging.WARNING)  # it has two lines per request
        logging.getLogger("uvicorn.access").addFilter(without_query)

    async def _serve(self) -> None:
        self._rest_server.config.host = self._host  # KServe itself listens on all addresses
        try:
            await super()._serve()
        finally:
            for model in self._models:
                await model.close()


def without_query(record: logging.LogRecord) -> bool:
    """Cut the query from a line of the access log, for /invocations takes inputs in it. Keeps every line."""
    if isinstance(record.args, tuple):
        record.args = tuple(item.partition("?")[0] if isinstance(item, str) else item for item in record.args)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parser().parse_args(arguments)
    figures = Figures()
    try:
        models = [ArchiveModel(path, chosen.max_waiting, options(chosen, figures)) for path in archives(chosen)]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    by_name = {model.name: model for model in models}
    if len(by_name) < len(models):
        print("error: two archives have the same name", file=sys.stderr)
        return 1
    Door(by_name, chosen.max_body_bytes).into(app)
    Server(chosen.host, models).start(models)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line; KServe's own options are among its options."""
    raw = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(
        prog="scripts/serve-kserve",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=raw,
        parents=[kserve_parser],
    )
    found.set_defaults(model_name=None)
    found.add_argument(
        "archive", nargs="+", type=Path, metavar="FILE.mar",
        help="an archive, a folder that one was unpacked into, or a folder with .mar files (KServe's /mnt/models)",
    )  # fmt: skip
    found.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    found.add_argument("--device", help="cpu, cuda, or cuda:1 (default: as the archive says)")
    found.add_argument("--digest", metavar="sha256:...", help="refuse an archive with another content digest")
    found.add_argument("--edited-settings", action="store_true", help="take an edited model-config.yaml")
    found.add_argument("--other-version", action="store_true", help="take an archive of other handlers than these")
    found.add_argument(
        "--max-waiting",
        type=int,
        default=MOST_WAITING,
        metavar="N",
        help="requests that may wait; the next one gets a 503 (default: %(default)s)",
    )
    found.add_argument(
        "--max-body-bytes",
        type=int,
        default=MOST_BYTES,
        metavar="N",
        help="a larger body gets a 413 (default: %(default)s)",
    )
    return found


def options(chosen: argparse.Namespace, figures: Figures) -> dict[str, Any]:
    """Return what load_archive is called with."""
    return {
        "name": chosen.model_name,
        "device": chosen.device,
        "digest": chosen.digest,
        "edited_settings": chosen.edited_settings,
        "allow_other_version": chosen.other_version,
        "metrics": figures,
    }


def archives(chosen: argparse.Namespace) -> list[Path]:
    """Return the archives that the command line names. Raises ValueError for a folder that holds none."""
    found: list[Path] = []
    for path in chosen.archive:
        if not path.is_dir() or (path / "MAR-INF").is_dir():
            found.append(path)
            continue
        inside = sorted(path.glob("*.mar"))
        if not inside:
            raise ValueError(f"{path} holds no .mar, and is no unpacked archive")
        found += inside
    if len(found) > 1 and (chosen.model_name or chosen.digest):
        raise ValueError("--model_name and --digest are for one archive")
    return found


if __name__ == "__main__":
    sys.exit(main())
