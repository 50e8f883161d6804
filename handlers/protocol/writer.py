"""Requests -> one answer per row, in order, with its status and headers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from http import HTTPStatus

from handlers.protocol import internal_errors
from handlers.protocol.adapter import Adapter, Answer
from handlers.protocol.context import Context
from handlers.protocol.errors import RequestError
from handlers.protocol.request import Request

STREAM_NEXT = "ts_stream_next"
PHRASES = {int(status): status.phrase for status in HTTPStatus}


def fail(requests: Iterable[Request], error: RequestError) -> None:
    """Make `error` the answer of every request that still waits for one."""
    for request in requests:
        if request.is_waiting:
            request.error = error


def write(requests: Sequence[Request], context: Context) -> list[bytes]:
    """Return one body per row, in order; statuses, content types and ends of streams are set on the context."""
    bodies = []
    for index, request in enumerate(requests):
        answer = _answer(request)
        context.set_response_status(answer.status, PHRASES[answer.status], index)
        context.set_response_content_type(index, answer.media_type)
        for name, value in (*request.ids.headers().items(), *answer.headers.items()):
            context.set_response_header(index, name, value)
        if request.is_grpc:
            # Without it TorchServe's worker dies at a StreamPredictions call; with it a REST client waits for ever.
            context.set_response_header(index, STREAM_NEXT, "false")
        if request.is_unanswerable:
            # TorchServe's worker writes an answer for each id that is left here, and for no other row.
            context.request_ids.pop(index, None)
        bodies.append(answer.body)
    return bodies


def _answer(request: Request) -> Answer:
    """The request's answer; one that cannot be written becomes the request's error."""
    if request.error is None:
        try:
            return request.adapter.write(request)
        except RequestError as error:
            request.error = error
        except BaseException as error:
            request.error = internal_errors.log_failure(error, "writing the answer")
    try:
        return request.adapter.write_error(request.error.of(request.ids))
    except BaseException as error:
        return Adapter.write_error(request.adapter, internal_errors.log_failure(error, "writing the error"))
