"""One HTTP request at a time to a server on this machine."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

TIMEOUT_S = 120.0
IDS = re.compile(rb', ?"(?:client_)?request_id": ?"[^"]*"')


class Answer(NamedTuple):
    """An HTTP answer: status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed. Raises ValueError if it is no JSON."""
        return json.loads(self.body)


def without_ids(body: bytes) -> bytes:
    """Return an error's body without the ids of its request, which differ from one request to the next."""
    return IDS.sub(b"", body)


def request(
    method: str,
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Answer:
    """Send one request. An answer with an error status is returned like any other.

    A body without a Content-Type is sent as application/octet-stream. `timeout_s` limits each wait: for the
    connection, and for each part of the answer.

    Raises:
        TimeoutError: no answer came in time.
        ConnectionError: nobody listens, or the connection broke.
        ValueError: `url` is not valid.
    """
    sent = httpx.Headers(headers, encoding="latin-1")
    if body is not None:
        sent.setdefault("Content-Type", "application/octet-stream")
    try:
        answer = _client().request(method, url, content=body, headers=sent, timeout=timeout_s)
    except httpx.TimeoutException as error:
        raise TimeoutError(f"{url} did not answer within {round(timeout_s, 2):g} s") from error
    except httpx.InvalidURL as error:
        raise ValueError(f"{url} is not a valid address: {error}") from error
    except httpx.HTTPError as error:
        raise ConnectionError(f"{url} did not answer: {error or type(error).__name__}") from error
    return Answer(answer.status_code, dict(answer.headers.items()), answer.content)


@functools.cache
def _client() -> httpx.Client:
    """The client of all requests; it may be used from several threads.

    It ignores proxies in the environment, because the server is on this machine. It closes each connection after the
    answer, and says so: TorchServe counts idle connections too, and drops them when it stops. It asks for no
    compression, so that the body is what the handler wrote.
    """
    return httpx.Client(
        trust_env=False,
        headers={"Accept-Encoding": "identity", "Connection": "close"},
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
    )
