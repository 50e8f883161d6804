"""Results -> one answer per row, in order, with its status and headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson

from handlers.protocol import charsets, encodings, unexpected
from handlers.protocol.context import Context
from handlers.protocol.errors import InferenceFailed, RequestError
from handlers.protocol.request import Request

STREAM_NEXT = "ts_stream_next"


def describe(requests: Iterable[Request], description: Mapping[str, Any]) -> None:
    """Answer those rows that ask for the model's description."""
    for request in requests:
        if request.description is not None:
            request.description = dict(description)


def fail(requests: Iterable[Request], error: RequestError) -> None:
    """Make `error` the answer of every request that has none yet."""
    for request in requests:
        if request.open and not request.results:
            request.error = error


def write(requests: Sequence[Request], context: Context) -> list[bytes]:
    """Return one answer per row, in order, with its status, content type and end of stream set on the context."""
    written = []
    for index, request in enumerate(requests):
        body, headers = _written(request)
        status = request.error.status if request.error else 200
        context.set_response_status(status, HTTPStatus(status).phrase, index)
        context.set_response_content_type(index, charsets.JSON if request.error else request.form)
        for name, value in headers.items():
            context.set_response_header(index, name, value)
        if request.grpc:
            # Without it TorchServe's worker dies at a StreamPredictions call; with it a REST client waits for ever.
            context.set_response_header(index, STREAM_NEXT, "false")
        if request.unanswerable:
            # TorchServe's worker writes an answer for each id that is left here, and for no other row.
            context.request_ids.pop(index, None)
        written.append(body)
    return written


def _written(request: Request) -> tuple[bytes, dict[str, str]]:
    """The answer in its form, and its headers; an answer that cannot be written becomes the request's error."""
    try:
        if request.open and request.form != encodings.JSON:
            return encodings.as_bytes(request.results, request.options, request.form)
        return orjson.dumps(request.answer(), option=orjson.OPT_SERIALIZE_NUMPY), {}
    except orjson.JSONEncodeError:
        request.error = InferenceFailed("the model's answer could not be written as JSON")
    except BaseException as error:
        request.error = unexpected.failed(error, "writing the answer")
    return orjson.dumps(request.error.body()), {}
