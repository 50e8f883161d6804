"""What every protocol's adapter offers: rows of one protocol -> requests, and answers back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from handlers.protocol import encodings, json_values
from handlers.protocol.errors import InferenceFailed, RequestError
from handlers.protocol.interface import Interface
from handlers.protocol.request import Request
from handlers.protocol.row import Row


@dataclass(frozen=True)
class Answer:
    """What a client gets: the body, its status, its media type, and response headers."""

    body: bytes
    status: int = 200
    media_type: str = encodings.JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class Adapter(ABC):
    """One protocol. Adapters keep no state: a batch mixes requests of several protocols.

    Args:
        priority: if several adapters claim a row, the one with the highest priority reads it. 0 is TorchServe's own,
            which claims every row. 1 is the usual value. 2 goes before an adapter of 1 that would claim the same row.
        by_path: whether the adapter claims no row for which Row.is_plain is true. It is not asked for these, which
            are most rows.
    """

    priority = 1
    by_path = False

    @abstractmethod
    def claims(self, row: Row) -> bool:
        """Return whether the row came by this protocol: by its path, its headers, or the form of its body."""

    @abstractmethod
    def read(self, row: Row, model: Interface) -> Request:
        """Return the row's request: the model's inputs, and how the answers to them are combined into one.

        Raises RequestError unless everything that the client sent is understood.
        """

    def write(self, request: Request) -> Answer:
        """Return the answer to a request that has no error. The default writes the request's media type.

        Raises RequestError.
        """
        if request.media_type != encodings.JSON:
            body, headers = encodings.as_bytes(request.answers, request.options, request.media_type)
            return Answer(body, media_type=request.media_type, headers=headers)
        return json_answer(request.combine(request.answers))

    def write_error(self, error: RequestError) -> Answer:
        """Return an error in the protocol's own shape, by default in that of TorchServe's own errors."""
        return json_answer(error.body(), error.status)


def json_answer(content: object, status: int = 200) -> Answer:
    """Return an answer in JSON, as json_values.dumps writes it. Raises InferenceFailed for what cannot be written."""
    try:
        return Answer(json_values.dumps(content), status)
    except orjson.JSONEncodeError:
        raise InferenceFailed("the model's answer could not be written as JSON") from None
