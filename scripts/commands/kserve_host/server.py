"""Serve archives by KServe's ModelServer: what scripts/serve-kserve does."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from kserve import ModelServer
from kserve.model_server import app
from kserve.model_server import parser as kserve_parser

from kserve_host import command_line
from kserve_host.archive_model import ArchiveModel
from kserve_host.figures import Figures
from kserve_host.routes import Door


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
    chosen = command_line.parser(kserve_parser).parse_args(arguments)
    paths = command_line.check(chosen)
    figures = Figures()
    try:
        command_line.refuse_address(chosen.host, chosen.http_port)
        models = [ArchiveModel(path, chosen.max_waiting, options(chosen, figures)) for path in paths]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    Door({model.name: model for model in models}, chosen.max_body_bytes).into(app)
    Server(chosen.host, models).start(models)
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
