"""An HTTP request -> the row, and its headers, that TorchServe's front end would hand to a handler.

handlers/protocol/row.py has the table of what arrives by which path. Two things are better here than there: parts of
the same name are refused, whatever their size, and a compressed part is seen.
"""

from __future__ import annotations

from collections import Counter
from typing import Any
from urllib.parse import parse_qsl

from handlers.hosts.messages import HttpRequest
from handlers.protocol import arrivals, charsets
from handlers.protocol.errors import InvalidInput, UnsupportedMediaType

FORM = "application/x-www-form-urlencoded"
MOST_PARTS = 1024
Parameters = dict[str, Any]
Sent = dict[str, Any]


def row_of(request: HttpRequest) -> tuple[Parameters, Sent]:
    """Return the row's parameters, and its headers with the content types of the parameters.

    Raises RequestError for a form that cannot be read whole.
    """
    if request.entries is not None:
        return dict(request.entries), {}  # TorchServe hands a gRPC call over without any header
    sent = _headers(request)
    parameters: Parameters = {}
    types: dict[str, str] = {}
    if request.door == "invocations":
        parameters |= {name: value.encode() for name, value in parse_qsl(request.query, keep_blank_values=True)}
    declared = next((value for name, value in request.pairs() if name.lower() == "content-type"), "")
    media_type = charsets.content_type(declared)[0]
    if media_type == FORM:
        text = request.body.decode("utf-8", "replace")
        parameters |= {name: value.encode() for name, value in parse_qsl(text, keep_blank_values=True)}
    elif media_type.startswith("multipart/") and (boundary := _boundary(declared)):
        for name, content_type, value in _parts(request.body, boundary):
            parameters[name], types[name] = value, content_type
    else:
        parameters["body"], types["body"] = request.body, declared
    return parameters, {**{name: {"content-type": kind} for name, kind in types.items()}, **sent}


def _headers(request: HttpRequest) -> Sent:
    """The client's headers, and those that the front end adds.

    A client's own header of such a name is kept in another spelling: handlers.protocol.row joins the two.
    """
    added = {"content-length": str(len(request.body))}
    if request.door in ("predictions", "explanations"):
        added["url_path"] = request.path
    if request.door != "invocations":
        added["explain"] = str(request.door in ("explanations", "kserve-explain"))
    sent: Sent = {}
    for name, value in request.pairs():
        if name.lower() != "content-length":
            key = name.title() if name.lower() in added else name.lower()
            sent[key] = f"{sent[key]}, {value}" if key in sent and sent[key] != value else value
    return {**sent, **added, **_arrival(request, sent)}


def _arrival(request: HttpRequest, sent: Sent) -> Sent:
    """When the request came, as a proxy says it: by a proxy's own word, else by the host's, if that knows."""
    if request.arrived is None:
        return {}
    proxied = arrivals.of(sent.get(arrivals.HEADER, ""), request.arrived)
    return {arrivals.HEADER: f"t={request.arrived if proxied is None else proxied:.6f}"}


def _boundary(content_type: str) -> str:
    """The boundary that the header names; "" if it names none."""
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "boundary":
            return value.strip().strip('"')
    return ""


def _parts(body: bytes, boundary: str) -> list[tuple[str, str, bytes]]:
    """Name, content type ("" for none) and bytes of each part. Raises RequestError."""
    try:
        from multipart import MultipartError, PushMultipartParser
    except ImportError:
        raise UnsupportedMediaType(
            "forms in parts are read with the package multipart, which is not installed here; send the file as the "
            "body, or JSON"
        ) from None
    found: list[tuple[str, str, bytes]] = []
    segment: Any = None
    value = bytearray()
    try:
        with PushMultipartParser(boundary, max_segment_count=MOST_PARTS) as parser:
            for event in parser.parse(body) if body else ():
                if event is None:
                    found.append((segment.name, _type_of(segment), bytes(value)))
                elif isinstance(event, (bytes, bytearray)):
                    value += event
                else:
                    segment, value = event, bytearray()
    except MultipartError as error:
        raise InvalidInput(f"the form in parts cannot be read: {type(error).__name__}; it may be cut off") from None
    _refuse_doubles(found)
    return found


def _type_of(segment: Any) -> str:
    """The part's content type as it came. Raises UnsupportedMediaType for a part that is coded."""
    coding = str(segment.header("Content-Transfer-Encoding") or segment.header("Content-Encoding") or "")
    if coding.strip().lower() not in ("", "identity", "7bit", "8bit", "binary"):
        raise UnsupportedMediaType("a part of the form came in a transfer or content encoding; send it as it is")
    return str(segment.header("Content-Type") or "") if segment.filename is not None else ""


def _refuse_doubles(found: list[tuple[str, str, bytes]]) -> None:
    count = max(Counter(name for name, _, _ in found).values(), default=0)
    if count > 1:
        raise InvalidInput(f"{count} parts have the same name; give each part a name of its own")
