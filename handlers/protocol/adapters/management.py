"""TorchServe's management port: GET /models/NAME?customized=true asks for the model's description."""

from __future__ import annotations

from handlers.protocol.adapter import Adapter
from handlers.protocol.interface import Interface
from handlers.protocol.request import Request
from handlers.protocol.row import Row


class Management(Adapter):
    """Answers with the description that the model was loaded with; the model does not run."""

    def claims(self, row: Row) -> bool:
        return row.wants_description

    def read(self, row: Row, model: Interface) -> Request:
        return Request(self, combine=lambda answers: dict(model.description))


ADAPTER = Management()
