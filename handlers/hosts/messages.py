"""HTTP requests and responses as a host exchanges them with a model, and which model a path asks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote

# By which of TorchServe's paths a request came; the adapters tell protocols by it.
Door = Literal["predictions", "explanations", "invocations", "kserve", "kserve-explain"]
Headers = Mapping[str, str] | Sequence[tuple[str, str]]


@dataclass(frozen=True)
class HttpRequest:
    """A request for one model.

    Args:
        path: what follows the model's name and version, without a slash before it: "v1/embeddings"; "" for nothing.
        headers: by name, in any case; as pairs if one came twice.
        body: whole, not in pieces; not decompressed.
        query: what follows the "?" in the path. Only /invocations heeds it, as in TorchServe.
        door: by which of TorchServe's paths the request came; see `routed`.
        arrived: when the host had the request whole, in time.time()'s seconds. X-Timeout-Ms and the figure QueueTime
            count from it, unless a proxy has set X-Request-Start. None for a request that waits for nothing.
        entries: of the map `input`, if the request came by gRPC's Predictions; then nothing else of it counts.
    """

    path: str = ""
    headers: Headers = ()
    body: bytes = b""
    query: str = ""
    door: Door = "predictions"
    arrived: float | None = None
    entries: Mapping[str, bytes] | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """Return the headers as pairs, in the order in which they came."""
        return list(self.headers.items() if isinstance(self.headers, Mapping) else self.headers)


@dataclass(frozen=True)
class HttpResponse:
    """The answer to one request; content-type is among the headers, content-length is not."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Routed:
    """Which model a request asks, and the request itself.

    model: "" if the path names none, as /v2/health/ready. version: "" for any.
    """

    model: str
    version: str
    request: HttpRequest


_V2 = re.compile(r"v2(?:/health/(?:live|ready))?")
_V2_MODEL = re.compile(r"v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<rest>|/ready|/infer)")
_V1 = re.compile(r"v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>[^/:]+))?:(?P<verb>predict|explain)")
_OWN = re.compile(r"(?P<door>predictions|explanations)/(?P<model>[^/]+)(?:/(?P<version>[^/]+)(?:/(?P<rest>.*))?)?")
_MODEL_NAME = re.compile(r"(?:^|&)model_name=([^&]+)")
_MODEL_VERSION = re.compile(r"(?:^|&)model_version=([^&]+)")


def routed(target: str, headers: Headers = (), body: bytes = b"") -> Routed | None:
    """Return which model a request asks; None for a path that TorchServe's inference port and KServe do not have.

    TorchServe's paths are /predictions/NAME[/VERSION[/...]], /explanations/..., /invocations?model_name=NAME,
    /v1/models/NAME:predict and /v2/models/NAME/infer. Those of KServe v2 that TorchServe does not hand over come too:
    /v2, /v2/health/live, /v2/health/ready, /v2/models/NAME and /v2/models/NAME/ready.

    Args:
        target: the path, percent-encoded as it came, with the query.
        headers, body: of the request.
    """
    path, _, query = target.partition("?")
    path = path.strip("/")
    if found := _OWN.fullmatch(path):
        door: Door = "predictions" if found["door"] == "predictions" else "explanations"
        return _of(found, HttpRequest(unquote(found["rest"] or ""), headers, body, query, door))
    if path == "invocations":
        return _invocation(HttpRequest("", headers, body, query, "invocations"))
    if found := _V1.fullmatch(path):
        door = "kserve" if found["verb"] == "predict" else "kserve-explain"
        return _of(found, HttpRequest("", headers, body, query, door))
    if (found := _V2_MODEL.fullmatch(path)) and found["rest"] == "/infer":
        return _of(found, HttpRequest("", headers, body, query, "kserve"))
    if found:
        return _of(found, HttpRequest(unquote(path), headers, body, query))
    return Routed("", "", HttpRequest(path, headers, body, query)) if _V2.fullmatch(path) else None


def _of(found: re.Match[str], request: HttpRequest) -> Routed:
    return Routed(unquote(found["model"]), unquote(found["version"] or ""), request)


def _invocation(request: HttpRequest) -> Routed:
    model, version = (pattern.search(request.query) for pattern in (_MODEL_NAME, _MODEL_VERSION))
    return Routed(unquote(model[1]) if model else "", unquote(version[1]) if version else "", request)
