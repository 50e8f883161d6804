"""What is answered without a model: whether the server is there, and whether a model may be asked.

A probe asks for these all the time. It must not load a model and drop another one for it, nor make a model seem used.
"""

from __future__ import annotations

from handlers.hosts.messages import HttpRequest, HttpResponse
from handlers.protocol import request_ids
from handlers.protocol.adapter import json_answer
from handlers.protocol.interface import Interface
from handlers.protocol.open_inference import metadata, paths


def of_server(request: HttpRequest) -> bool:
    """Return whether a request asks for the server, and for no model: /v2 and /v2/health/..."""
    return request.door == "predictions" and request.entries is None and request.path in paths.SERVER


def of_readiness(request: HttpRequest, name: str, version: str) -> bool:
    """Return whether a request asks if the model of this name and version is ready, in KServe's protocol v2."""
    ready = (f"v2/models/{name}/ready", f"v2/models/{name}/versions/{version}/ready")
    return request.door == "predictions" and request.entries is None and request.path in ready


def answer(request: HttpRequest, name: str) -> HttpResponse:
    """Return what the loaded model would answer to a request of the two kinds above."""
    asked = paths.SERVER.get(request.path, "model-ready")
    model = Interface("", bool, 1, name=name, task="image-classification")  # its name alone is told
    found = json_answer(metadata.of(asked, model))
    headers = {key.lower(): value for key, value in request.pairs()}
    ids = request_ids.read(headers, None, 0).headers()
    return HttpResponse(
        found.status,
        {"content-type": found.media_type, **{key.lower(): value for key, value in ids.items()}},
        found.body,
    )
