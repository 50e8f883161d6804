"""TorchServe's management port: GET /models/NAME?customized=true asks for the model's description."""

from __future__ import annotations

import os

from handlers.protocol import parking
from handlers.protocol.adapter import Adapter
from handlers.protocol.interface import Interface
from handlers.protocol.request import Request
from handlers.protocol.row import Row


class Management(Adapter):
    """Answers with the description that the model was loaded with; the model does not run.

    The answer names the worker that gives it. scripts/deploy asks until each worker has answered: then each has
    finished the batch that it had before.
    """

    by_path = True

    def claims(self, row: Row) -> bool:
        return row.wants_description

    def read(self, row: Row, model: Interface) -> Request:
        parking.park_if_named(row.header(parking.HEADER))
        return Request(self, combine=lambda answers: {**model.description, "worker": {"pid": os.getpid()}})


ADAPTER = Management()
