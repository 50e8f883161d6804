"""HTTP requests -> the archive's protocol adapters, as they came.

KServe's server parses bodies before a model sees them: it takes JSON for a dict, and drops what its own classes do
not name. Answers would differ from TorchServe's. So these routes come before KServe's own in its application. KServe
keeps the readiness and metadata paths, /metrics, and the life of the process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import asgi_requests
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from handlers.hosts.async_model import BusyError
from handlers.hosts.messages import Routed, routed
from handlers.hosts.model import ModelClosedError, ModelLostError
from kserve_host.archive_model import ArchiveModel

logger = logging.getLogger(__name__)

INFERENCE = (
    "/v1/models/{name}:predict",
    "/v1/models/{name}:explain",
    "/v2/models/{name}/infer",
    "/v2/models/{name}/versions/{version}/infer",
)
OWN = ("/predictions/{rest:path}", "/explanations/{rest:path}", "/invocations")
REPOSITORY = "/v2/repository/{rest:path}"


class Door:
    """Answers requests for a server's models.

    Args:
        models: by name.
        most_bytes: of a body.
    """

    def __init__(self, models: Mapping[str, ArchiveModel], most_bytes: int) -> None:
        self.models, self.most_bytes = models, most_bytes

    def into(self, app: FastAPI) -> None:
        """Add the routes. KServe adds its own when it starts, and the first that fits is taken."""
        hidden = {"include_in_schema": False, "response_model": None}
        for path in INFERENCE:
            app.add_api_route(path, self.answer, methods=["POST"], **hidden)
        for path in OWN:
            app.add_api_route(path, self.answer, methods=["GET", "POST"], **hidden)
        app.add_api_route(REPOSITORY, self.refuse, methods=["GET", "POST"], **hidden)

    async def answer(self, request: Request) -> Response:
        """Return the model's answer; an error of the host itself in KServe's form."""
        try:
            body = await asgi_requests.body(request, self.most_bytes)
        except asgi_requests.BodyTooLargeError:
            return _error(request, 413, f"the body is larger than {self.most_bytes} bytes, which is the most here")
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
        found = routed(asgi_requests.target(request), headers, body)
        if found is None:
            return _error(request, 404, "no protocol has this path")
        return await self._ask(found, request)

    async def refuse(self, request: Request) -> Response:
        """Return a 404: with KServe's own answer, any client could unload a model."""
        return _error(request, 404, "models are neither loaded nor unloaded by requests here")

    async def _ask(self, found: Routed, request: Request) -> Response:
        model = self.models.get(found.model)
        if model is None:
            return _error(request, 404, "there is no model of this name; /v1/models lists them")
        if found.version not in ("", model.model.version):
            return _error(request, 404, f"{model.name} has the version {model.model.version} alone")
        try:
            answer = await model.answer(found.request)
        except (BusyError, ModelClosedError) as error:
            return _error(request, 503, str(error))
        except ModelLostError as error:
            logger.critical("%s", error)
            os._exit(1)  # nothing runs on that GPU any more in this process; Kubernetes starts another one
        return Response(answer.body, answer.status, dict(answer.headers))


def _error(request: Request, status: int, message: str) -> Response:
    """An error of the host, with the ids that a model's own errors have."""
    ids = asgi_requests.ids(request)
    return JSONResponse({"error": message, **ids.fields()}, status, ids.headers())
