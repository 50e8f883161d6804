"""How long a client will wait, by its request's headers, so that nothing is computed for one who has given up."""

from __future__ import annotations

import re
import time

from handlers.protocol.errors import DeadlinePassed, InvalidOption
from handlers.protocol.row import Row

TIMEOUT = "x-timeout-ms"
ENVOY = "x-envoy-expected-rq-timeout-ms"  # set by Envoy and Istio
START = "x-request-start"  # set by proxies: nginx writes "t=" and seconds with milliseconds
LONGEST_MS = 3_600_000
OLDEST_S = 3600.0  # an older start is that of another clock


def of(row: Row, now: float | None = None) -> float | None:
    """Return until when the answer is wanted, in time.time()'s seconds; None if the request does not say.

    TorchServe tells a handler no time of arrival. So the time counts from X-Request-Start if a proxy has set it, else
    from `now`, which is when the batch arrived at the worker: the time in the queue is not seen then.

    Raises InvalidOption if X-Timeout-Ms is no whole number from 1 to LONGEST_MS.
    """
    now = time.time() if now is None else now
    limits = [_milliseconds(row.header(name), name) for name in (TIMEOUT, ENVOY) if name in row.headers]
    known = [limit for limit in limits if limit is not None]
    return _start(row.header(START), now) + min(known) / 1e3 if known else None


def refusal(deadline: float | None, now: float | None = None) -> DeadlinePassed | None:
    """Return the error of a request whose deadline has passed; None if there is time left, or no deadline."""
    late_s = 0.0 if deadline is None else (time.time() if now is None else now) - deadline
    if late_s <= 0:
        return None
    return DeadlinePassed(
        f"the request's time was over {late_s * 1e3:.0f} ms before the model could run it; "
        "wanted: a longer X-Timeout-Ms, or fewer requests at a time"
    )


def _milliseconds(text: str, name: str) -> int | None:
    if text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= LONGEST_MS:
        return int(text)
    if name == TIMEOUT:
        raise InvalidOption(f"header {name}: wanted: milliseconds, a whole number from 1 to {LONGEST_MS}")
    return None  # a proxy's own is no fault of the client


def _start(text: str, now: float) -> float:
    """When a proxy took the request: seconds, milliseconds or microseconds since 1970; `now` if it does not say."""
    found = re.fullmatch(r"(?:t=)?(\d{10})(?:\.(\d{1,6})|(\d{3}|\d{6}))?", text.strip())
    if not found:
        return now
    seconds = float(f"{found[1]}.{found[2] or found[3] or 0}")
    return seconds if now - OLDEST_S <= seconds <= now else now
