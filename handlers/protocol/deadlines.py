"""How long a client will wait, by its request's headers, so that nothing is computed for one who has given up."""

from __future__ import annotations

import time

from handlers.protocol import arrivals
from handlers.protocol.errors import DeadlinePassed, InvalidOption
from handlers.protocol.row import Row

TIMEOUT = "x-timeout-ms"
ENVOY = "x-envoy-expected-rq-timeout-ms"  # set by Envoy and Istio
LONGEST_MS = 3_600_000


def of(row: Row, now: float | None = None) -> float | None:
    """Return until when the answer is wanted, in time.time()'s seconds; None if the request does not say.

    The time counts from X-Request-Start if a proxy or a host has set it, else from `now`, which is when the batch
    arrived at the worker: the time in the queue is not seen then.

    Raises InvalidOption if X-Timeout-Ms is no whole number from 1 to LONGEST_MS.
    """
    if TIMEOUT not in row.headers and ENVOY not in row.headers:
        return None
    now = time.time() if now is None else now
    limits = [_milliseconds(row.header(name), name) for name in (TIMEOUT, ENVOY) if name in row.headers]
    known = [limit for limit in limits if limit is not None]
    if not known:
        return None
    arrived = arrivals.of(row.header(arrivals.HEADER), now)
    return (now if arrived is None else arrived) + min(known) / 1e3


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
