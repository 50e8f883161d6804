"""The one exception of this package."""

from __future__ import annotations

from typing import Any

import httpx

# No byte of the request has reached the server.
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class RequestFailed(Exception):
    """A request has no answer: the server refused it, or could not be asked.

    Args:
        status: of the answer; None if none came.
        type: as in docs/api.md, for example "InputTooLong"; the name of httpx's error if no answer came.
        message: what is wrong, and what is wanted.
        request_id: the server's id of the request; "" if it gave none.
        is_safe_to_retry: whether the model has not run: the server could not be reached, or its queue was full.
    """

    def __init__(
        self, status: int | None, type: str, message: str, request_id: str = "", is_safe_to_retry: bool = False
    ) -> None:
        super().__init__(f"{status or 'no answer'} {type}: {message}")
        self.status = status
        self.type = type
        self.message = message
        self.request_id = request_id
        self.is_safe_to_retry = is_safe_to_retry


def refused(response: httpx.Response) -> RequestFailed:
    """Return the error that an answer with an error status tells; another server's has no type."""
    try:
        content = response.json()
    except ValueError:
        content = None
    said: dict[str, Any] = content if isinstance(content, dict) else {}
    status = response.status_code
    return RequestFailed(
        status,
        str(said.get("type", response.reason_phrase)),
        str(said.get("message", "the server gave no reason")),
        str(said.get("request_id", response.headers.get("x-request-id", ""))),
        is_safe_to_retry=status == httpx.codes.SERVICE_UNAVAILABLE,
    )


def unanswered(error: httpx.HTTPError) -> RequestFailed:
    """Return the error for a request to which no answer came."""
    kind = type(error).__name__
    message = str(error) or "no answer came in time"
    return RequestFailed(None, kind, message, is_safe_to_retry=isinstance(error, NOT_SENT))


def unexpected(response: httpx.Response) -> RequestFailed:
    """Return the error for an answer that has not the form that was asked for."""
    message = "the answer has another form than this method reads; is the model of another task?"
    return RequestFailed(response.status_code, "UnexpectedAnswer", message)
