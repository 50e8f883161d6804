"""When a request came, by a header that proxies set. TorchServe itself tells a handler no time of arrival."""

from __future__ import annotations

import re

HEADER = "x-request-start"
OLDEST_S = 3600.0  # an older time is that of another clock
AHEAD_S = 5.0  # by so much the clock of a proxy's machine may be ahead
# "t=" and seconds with a fraction (nginx, Envoy), or milli- (HAProxy, Heroku), micro- (Apache) or nanoseconds since
# 1970. Whole seconds are too coarse. Source: docs.newrelic.com, "Request queue server configuration examples".
_FORMS = re.compile(r"(?:t=)?([0-9]{10})(?:\.([0-9]{1,9})|([0-9]{3}|[0-9]{6}|[0-9]{9}))")


def of(value: str, now: float) -> float | None:
    """Return when a proxy took the request, at most `now`; None if the header does not say, or cannot be right.

    A proxy's header is no instruction of the client, so nothing in it is an error.

    Args:
        value: of X-Request-Start; "" if it did not come.
        now: in time.time()'s seconds, as the result.
    """
    found = _FORMS.fullmatch(value) if value else None
    if found is None:
        return None
    seconds = float(f"{found[1]}.{found[2] or found[3]}")
    return min(seconds, now) if now - OLDEST_S <= seconds <= now + AHEAD_S else None
