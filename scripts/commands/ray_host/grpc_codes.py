"""HTTP's statuses as gRPC's. What they mean is in grpc.io's list of status codes (docs/guides/status-codes)."""

from __future__ import annotations

# Names of grpc.StatusCode, by the statuses that models and fronts answer with: handlers/protocol/errors.py, front.py.
CODES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    406: "INVALID_ARGUMENT",  # no form of the answer is one that the client takes
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",  # as gRPC itself answers a message that is too large
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def of(status: int) -> str:
    """Return the name of the gRPC status for an HTTP status: that of its kind if it is in no list."""
    if 200 <= status < 300:
        return "OK"
    return CODES.get(status, "INVALID_ARGUMENT" if 400 <= status < 500 else "INTERNAL")
