"""The ids of one request: those by which its client, its operator and its trace name it.

TorchServe 0.12 makes an id per request, hands it to the worker, and answers it as `x-request-id`; a client cannot
choose that one. A client's own id and its trace are sent back as they came.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

CLIENT_HEADERS = ("x-client-request-id", "x-request-id")  # the first that came is the client's id
ECHO = "X-Client-Request-Id"
# An id stands in logs and in answers, so it must not hold line ends, quotes or spaces, nor be long.
CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+/=-]{0,127}")
# Source: w3.org/TR/trace-context, "traceparent Header". A version above 00 may have more fields.
TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class RequestIds(NamedTuple):
    """The ids of one request; "" for one that did not come, or that is not valid.

    Args:
        server: TorchServe's. The client finds it in the answer's header `x-request-id`.
        client: the client's own, from CLIENT_HEADERS. One that is too long or has other characters is left out.
        traceparent: of the client's trace, as W3C writes it. One that is not valid is left out, as W3C wants.
    """

    server: str = ""
    client: str = ""
    traceparent: str = ""

    def headers(self) -> dict[str, str]:
        """Return what goes back to the client, by header."""
        found = {ECHO: self.client} if self.client else {}
        return {**found, "traceparent": self.traceparent} if self.traceparent else found

    def fields(self) -> dict[str, str]:
        """Return what an error's body says."""
        found = {"request_id": self.server, "client_request_id": self.client}
        return {name: value for name, value in found.items() if value}

    def __str__(self) -> str:
        """Return what a line of the log says."""
        trace = self.traceparent[3:35]
        parts = [self.server, self.client and f"client's id {self.client}", trace and f"trace {trace}"]
        return ", ".join(filter(None, parts)) or "without an id"


def read(headers: Mapping[str, str], server: Mapping[int, str] | None, index: int) -> RequestIds:
    """Return the ids of a row.

    Args:
        headers: the request's, by lower-case name.
        server: TorchServe's ids, by the row's index in its batch.
        index: of the row.
    """
    sent = headers.get(CLIENT_HEADERS[0]) or headers.get(CLIENT_HEADERS[1], "")
    return RequestIds(
        server.get(index, "") if server else "",
        sent if sent and CLIENT_ID.fullmatch(sent) else "",
        _traceparent(headers.get("traceparent", "")),
    )


def _traceparent(sent: str) -> str:
    found = TRACEPARENT.fullmatch(sent) if 0 < len(sent) <= 128 else None
    if found is None or (found[1] == "00" and found[5]):
        return ""
    # The fields that this version knows: others are not ours to send on.
    return "-".join(found.groups()[:4])
