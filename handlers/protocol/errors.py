"""Every error that a client can cause, in one place.

The JSON body has the shape of TorchServe's own errors, so that a client needs one parser for both:
`{"code": 400, "type": "InvalidImage", "message": "..."}`. A message names what came and what was wanted, by sizes,
types and positions, never by the content that a user sent. `"request_id"` is TorchServe's id of the request, and
`"client_request_id"` the client's own, if there are such.
"""

from __future__ import annotations

import copy
from typing import TypeVar

from handlers.protocol.request_ids import RequestIds

E = TypeVar("E", bound="RequestError")


class RequestError(Exception):
    """One request cannot be answered; its neighbours in the batch can."""

    status = 400
    field: str | None = None  # of the client's JSON object that is at fault, if one alone is
    request_ids = RequestIds()

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def body(self) -> dict[str, object]:
        """Return what the client gets, in TorchServe's shape."""
        return {
            "code": self.status,
            "type": type(self).__name__,
            "message": self.message,
            **self.request_ids.fields(),
        }

    def of(self: E, ids: RequestIds) -> E:
        """Return this error as the one of the request with these ids: several requests may share one error."""
        named = copy.copy(self)
        named.request_ids = ids
        return named


class EmptyRequest(RequestError):
    """Nothing came, or a list with nothing in it."""


class InvalidJson(RequestError):
    """The body is declared as JSON, or begins as only JSON does, and is not valid."""


class InvalidInput(RequestError):
    """The body was read, and what it holds is not what the model takes."""


class InvalidOption(RequestError):
    """An option is unknown or out of range: a header, a field of a form, a query parameter, a JSON parameter."""


class InvalidImage(RequestError):
    """An image, or ready tensor, that cannot be read."""


class NotAcceptable(RequestError):
    """The header Accept allows no media type that the answer can come as."""

    status = 406


class InputTooLong(RequestError):
    """More tokens than the model takes, and truncation was not asked for."""


class UnknownPath(RequestError):
    """A path that TorchServe hands over and nothing here answers."""

    status = 404


class WrongTask(UnknownPath):
    """A path of a protocol that models of another task have, and this one has not."""


class UnknownModel(RequestError):
    """The request names another model than the one that its path asks."""

    status = 404


class PayloadTooLarge(RequestError):
    """More pixels, characters or inputs than one request may bring."""

    status = 413


class UnsupportedMediaType(RequestError):
    """A content type, a charset, a compression or an image format that the model does not read."""

    status = 415


class DeadlinePassed(RequestError):
    """The time that the client gave was over before the model could run; nothing was computed."""

    status = 504


class InferenceFailed(RequestError):
    """The input was fine and the model failed on it: an error of ours, not the client's."""

    status = 500


class NotFinite(InferenceFailed):
    """The model's output for the input is NaN or infinite, as when fp16 overflows."""

    def __init__(self, message: str = "the model's output is not finite (NaN or infinity) for this input") -> None:
        super().__init__(message)
