"""Reads Starlette's requests as they came, for hosts that hand them to an archive."""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request

from handlers.protocol import request_ids
from handlers.protocol.request_ids import RequestIds


class BodyTooLargeError(Exception):
    """A body has more bytes than a host takes."""


def target(request: Request) -> str:
    """Return the path as it came, percent-encoded, with the query."""
    raw = request.scope.get("raw_path")
    path = raw.decode("latin-1") if raw else quote(request.scope["path"])
    query = request.scope.get("query_string", b"").decode("latin-1")
    return f"{path.partition('?')[0]}?{query}" if query else path


def ids(request: Request) -> RequestIds:
    """Return the ids that the client gave, as a model's own errors have them. A header that came twice is joined."""
    sent: dict[str, str] = {}
    for name, value in request.headers.items():
        sent[name] = f"{sent[name]}, {value}" if sent.get(name, value) != value else value
    return request_ids.read(sent, None, 0)


async def body(request: Request, most_bytes: int) -> bytes:
    """Return the whole body.

    Raises BodyTooLargeError as soon as more than `most_bytes` have come, and starlette.requests.ClientDisconnect if
    the client has gone before the end.
    """
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > most_bytes:
            raise BodyTooLargeError
    return bytes(found)
