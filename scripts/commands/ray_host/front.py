"""HTTP requests of all paths, and gRPC's Predictions -> the replica of the model that they name."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import asgi_requests
from ray.exceptions import RayActorError, RayError
from ray.serve._private.constants import RAY_SERVE_USE_GRPC_BY_DEFAULT
from ray.serve.exceptions import BackPressureError, RayServeException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from handlers.hosts.messages import HttpRequest, HttpResponse, routed
from handlers.protocol.request_ids import RequestIds
from ray_host import door, grpc_service, whereabouts
from ray_host.door import ClosedError, Door
from ray_host.gathering import FullError, Gathering
from ray_host.gone import AnswerError, NotLoadedError, ReplicaGoneError

MOST_BYTES = 16 << 20  # of a body; as config.properties has it for TorchServe
JSON = {"content-type": "application/json"}
NO_IDS = RequestIds()

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Served:
    """A model.

    Args:
        handle: of its replicas.
        timeout_s: seconds until a request gets a 504.
        per_call: requests in one call to a replica, at most; 1 for a call per request, which Ray queues.
        calls: with several requests each that are on their way from one front, at most.
        max_queued: requests that wait in a front for such a call, at most.
        key: of this model in replicas that many models share; "" for replicas of its own.
    """

    version: str
    handle: Any
    timeout_s: float
    per_call: int = 1
    calls: int = 1
    max_queued: int = 0
    key: str = ""


class Refusal(Exception):
    """A request that no model sees."""

    def __init__(self, status: HTTPStatus, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message

    def response(self, ids: RequestIds = NO_IDS) -> HttpResponse:
        """The error in the form that a model's errors have. ids: of the request."""
        told = {"code": self.status.value, "type": self.kind, "message": self.message, **ids.fields()}
        later = {"retry-after": "1"} if self.status == HTTPStatus.SERVICE_UNAVAILABLE else {}
        return HttpResponse(self.status.value, {**JSON, **later, **ids.headers()}, json.dumps(told).encode())


class Front:
    """Reads a request whole, finds its model, and gives back the response of one of its replicas.

    Args:
        models: by name; the first version of a name is the one that a path without a version asks.
    """

    def __init__(self, models: Mapping[str, list[Served]]) -> None:
        self.models = {name: [_Asked(model) for model in versions] for name, versions in models.items()}
        self._door = Door()

    async def __call__(self, request: Request) -> Response:
        """Answer a request. Never raises for what a client sent, nor for a replica that is gone."""
        token = request.headers.get(door.HEADER)
        answer = await self._through_door(self._answer(request), token, asgi_requests.ids(request))
        return Response(answer.body, answer.status, dict(answer.headers))

    async def Predictions(self, request: bytes, grpc_context: Any) -> grpc_service.Prediction:  # noqa: N802
        """Answer a gRPC call of this name. Never raises, as `__call__`. request: a PredictionsRequest on the wire."""
        token = dict(grpc_context.invocation_metadata()).get(door.HEADER)
        return grpc_service.answered(await self._through_door(self._predict(request), token), grpc_context)

    async def close(self) -> int:
        """Refuse new requests from now on. Returns how many are still on their way."""
        return self._door.close()

    async def clear(self) -> None:
        """Give a 503 to all requests that are still on their way."""
        self._door.clear()

    async def _through_door(
        self, answer: Coroutine[Any, Any, HttpResponse], token: str | None, ids: RequestIds = NO_IDS
    ) -> HttpResponse:
        if not door.is_known(token):
            answer.close()
            message = "the request was meant for another process, which is gone; try again later"
            return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "FrontUnavailable", message).response(ids)
        try:
            return await self._door.through(answer)
        except ClosedError:
            message = "the server is ending; try again later"
            return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "Ending", message).response(ids)
        except Refusal as refusal:
            return refusal.response(ids)

    async def _predict(self, sent: bytes) -> HttpResponse:
        if len(sent) > MOST_BYTES:
            message = f"the call has more than {MOST_BYTES} bytes"
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "TooLarge", message)
        found = grpc_service.routed(sent)
        if found is None:
            raise Refusal(HTTPStatus.BAD_REQUEST, "BadRequest", "the bytes are no PredictionsRequest")
        return await self._ask(self._model(found.model, found.version), found.request)

    async def _answer(self, request: Request) -> HttpResponse:
        target = asgi_requests.target(request)
        path = target.partition("?")[0].strip("/")
        if path == "ping":
            return _json({"status": "Healthy"})
        if path == "models" or path.startswith("models/"):
            return await self._described(path)
        found = routed(target, request.headers.items(), await _body(request))
        if found is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "ResourceNotFoundException", "no such path; see docs/api.md")
        sent = dataclasses.replace(found.request, arrived=time.time())
        if not found.model and sent.door == "predictions":
            return await self._of_all(sent)
        return await self._ask(self._model(found.model, found.version), sent)

    def _model(self, name: str, version: str) -> _Asked:
        versions = self.models.get(name, [])
        if not name and len(self.models) == 1:  # /invocations without a name
            versions = next(iter(self.models.values()))
        chosen = next((model for model in versions if version in ("", model.version)), None)
        if chosen is None:
            kind = "ModelVersionNotFoundException" if versions and version else "ModelNotFoundException"
            raise Refusal(HTTPStatus.NOT_FOUND, kind, "no model of this name and version; /models lists them")
        return chosen

    async def _of_all(self, request: HttpRequest) -> HttpResponse:
        """KServe's paths without a model, as /v2/health/ready: the first answer that is not 200, else the last."""
        models = [model for versions in self.models.values() for model in versions]
        if models[0].key:  # all share their replicas, which need no model for this answer
            models = models[:1]
        answers = [await self._ask(model, request) for model in models]
        return next((answer for answer in answers if answer.status != HTTPStatus.OK), answers[-1])

    async def _ask(self, model: _Asked, request: HttpRequest) -> HttpResponse:
        answer: HttpResponse = await _told(model, model.answer(request))
        return answer

    async def _described(self, path: str) -> HttpResponse:
        _, _, rest = path.partition("/")
        if not rest:
            return _json({name: [model.version for model in versions] for name, versions in self.models.items()})
        name, _, version = rest.partition("/")
        model = self._model(unquote(name), unquote(version))
        return _json(await _told(model, model.describe()))


class _Asked:
    """A model as a front asks it. Another replica is asked if the first is gone.

    That is safe, because an answer depends on the request alone. It happens once, and for each request alone: one
    that kills a process must not kill all of them, nor take those with it that came with it.
    """

    def __init__(self, model: Served) -> None:
        self.version, self.timeout_s = model.version, model.timeout_s
        self.key = model.key
        # Both sides have the same classes, so Python's own pickle does, which takes less time than cloudpickle. Calls
        # go by gRPC if this front's environment says so. The handle itself has what the deploying process said. By
        # Ray's tasks, a replica stops for 13 s if the machine of a front that asked it dies.
        self._handle = model.handle.options(
            request_serialization="pickle",
            response_serialization="pickle",
            multiplexed_model_id=model.key,
            _by_reference=not RAY_SERVE_USE_GRPC_BY_DEFAULT,
        )
        self._gathering = Gathering(self._send, model.per_call, model.calls, model.max_queued)
        self._first = self._gathering.ask if model.per_call > 1 else self._alone

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Return the response. Raises as Ray Serve, FullError, ReplicaGoneError and AnswerError."""
        answer: HttpResponse = await _twice(lambda: self._first(request), lambda: self._alone(request))
        return answer

    async def describe(self) -> Any:
        """Return how the model runs and why. Raises as `answer`."""
        if self.key:
            return await whereabouts.of(self._handle, self.key)
        ask = self._handle.describe.remote
        return await _twice(ask, ask)

    async def _alone(self, request: HttpRequest) -> HttpResponse:
        answer: HttpResponse = await self._handle.answer.remote(request)
        return answer

    async def _send(self, requests: Sequence[HttpRequest]) -> Sequence[Any]:
        outcomes: Sequence[Any] = await self._handle.answer_all.remote(requests)
        return outcomes


async def _twice(first: Callable[[], Awaitable[Any]], again: Callable[[], Awaitable[Any]]) -> Any:
    """What `first` asks for; what `again` asks for if that replica is gone."""
    try:
        return await first()
    except (RayActorError, ReplicaGoneError) as error:
        logger.warning(f"a replica is gone, another one is asked: {type(error).__name__}")
    return await again()


async def _told(model: _Asked, asked: Coroutine[Any, Any, Any]) -> Any:
    """What a replica says. Raises Refusal."""
    try:
        return await asyncio.wait_for(asked, model.timeout_s)
    except (asyncio.TimeoutError, TimeoutError):
        raise Refusal(HTTPStatus.GATEWAY_TIMEOUT, "Timeout", f"no answer within {model.timeout_s:g} s") from None
    except (BackPressureError, FullError):
        raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "Busy", "too many requests wait; try again later") from None
    except NotLoadedError as error:  # Ray's copy of it is a RayError, too
        raise Refusal(HTTPStatus(error.status), error.kind, error.message) from None
    except RayServeException as error:
        logger.warning(f"a request got no answer: {type(error).__name__}")
        message = "no replica of the model runs; `serve status` says why"
        raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "ModelUnavailable", message) from None
    except (RayError, ReplicaGoneError, AnswerError) as error:
        logger.warning(f"a request got no answer: {type(error).__name__}")
        raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "ReplicaGone", "the model's process ended; try again") from None


async def _body(request: Request) -> bytes:
    """The whole body. Raises Refusal if it is too long, as soon as that is seen."""
    try:
        return await asgi_requests.body(request, MOST_BYTES)
    except asgi_requests.BodyTooLargeError:
        message = f"the body has more than {MOST_BYTES} bytes"
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "TooLarge", message) from None
    except ClientDisconnect:
        raise Refusal(HTTPStatus.BAD_REQUEST, "ClientDisconnect", "the body did not come whole") from None


def _json(content: object) -> HttpResponse:
    return HttpResponse(HTTPStatus.OK.value, JSON, json.dumps(content, default=str).encode())
