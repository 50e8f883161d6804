"""The two clients, which differ in how they send."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import httpx
import numpy as np
import stamina
from numpy.typing import NDArray

from torchserve_fast_client import _calls
from torchserve_fast_client._calls import Call
from torchserve_fast_client._errors import RequestFailed, unanswered
from torchserve_fast_client._inputs import Inputs
from torchserve_fast_client._results import Entity, Label, Rank

T = TypeVar("T")
Vectors = NDArray[np.floating[Any]]
Token = str | Callable[[], str]


class _Bearer(httpx.Auth):
    """Sends the token; one that a function gives is asked for before each try, so that it can be renewed."""

    def __init__(self, token: Token) -> None:
        self.token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        token = self.token if isinstance(self.token, str) else self.token()
        request.headers["Authorization"] = f"Bearer {token}"
        yield request


class _Sender:
    """What both clients have in common."""

    def __init__(self, attempts: int) -> None:
        self._tries: dict[str, Any] = {"on": _is_safe, "attempts": attempts, "timeout": None, "wait_max": 5.0}

    @staticmethod
    def _options(url: str, token: Token | None, timeout_s: float, more: dict[str, Any]) -> dict[str, Any]:
        auth = None if token is None else _Bearer(token)
        return {"base_url": url, "auth": auth, "timeout": timeout_s, **more}


def _is_safe(error: Exception) -> bool:
    return isinstance(error, RequestFailed) and error.is_safe_to_retry


class Client(_Sender):
    """Asks one server. It may be used from several threads.

    Every method takes a list of inputs and returns one answer per input, in order. `model` is NAME or NAME/VERSION.
    Options of the model are named as in docs/api.md; None is as the model has it.

    Args:
        url: of the server, http://127.0.0.1:8080.
        token: or a function that returns a valid one.
        timeout_s: for the connection, and for each part of the answer.
        attempts: tries in all, with growing pauses, if the server cannot be reached or its queue is full. No other
            request is sent again.
        httpx_options: of httpx.Client, for example `verify` or `headers`.

    All methods raise RequestFailed, and TypeError for inputs that no request can hold.
    """

    def __init__(
        self,
        url: str,
        token: Token | None = None,
        timeout_s: float = 60.0,
        attempts: int = 4,
        **httpx_options: Any,
    ) -> None:
        super().__init__(attempts)
        self._http = httpx.Client(**self._options(url, token, timeout_s, httpx_options))

    def embed(self, model: str, inputs: Inputs, **options: object) -> Vectors:
        """Return embeddings of texts or images, (N, numbers)."""
        return self._send(_calls.embed(model, inputs, options))

    def classify(self, model: str, inputs: Inputs, **options: object) -> list[list[Label]]:
        """Return labels of images, texts or pairs of texts, likeliest first."""
        return self._send(_calls.classify(model, inputs, options))

    def entities(self, model: str, texts: Sequence[str], **options: object) -> list[list[Entity]]:
        """Return the entities of texts."""
        return self._send(_calls.entities(model, texts, options))

    def rerank(
        self, model: str, query: str, documents: Sequence[str], top_n: int | None = None, **options: object
    ) -> list[Rank]:
        """Return the documents' scores for the query, the best first."""
        return self._send(_calls.rerank(model, query, documents, top_n, options))

    def predict(self, model: str, inputs: Inputs, **options: object) -> list[Any]:
        """Return the answers of a model of any task, as JSON has them."""
        return self._send(_calls.predict(model, inputs, options))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _send(self, call: Call[T]) -> T:
        for attempt in stamina.retry_context(**self._tries):
            with attempt:
                try:
                    response = self._http.post(call.path, **call.arguments)
                except httpx.HTTPError as error:
                    raise unanswered(error) from error
                return call.answer(response)
        raise AssertionError("the last attempt returns or raises")


class AsyncClient(_Sender):
    """As Client, for asyncio. Many requests at once share the server's batches."""

    def __init__(
        self,
        url: str,
        token: Token | None = None,
        timeout_s: float = 60.0,
        attempts: int = 4,
        **httpx_options: Any,
    ) -> None:
        super().__init__(attempts)
        self._http = httpx.AsyncClient(**self._options(url, token, timeout_s, httpx_options))

    async def embed(self, model: str, inputs: Inputs, **options: object) -> Vectors:
        """Return embeddings of texts or images, (N, numbers)."""
        return await self._send(_calls.embed(model, inputs, options))

    async def classify(self, model: str, inputs: Inputs, **options: object) -> list[list[Label]]:
        """Return labels of images, texts or pairs of texts, likeliest first."""
        return await self._send(_calls.classify(model, inputs, options))

    async def entities(self, model: str, texts: Sequence[str], **options: object) -> list[list[Entity]]:
        """Return the entities of texts."""
        return await self._send(_calls.entities(model, texts, options))

    async def rerank(
        self, model: str, query: str, documents: Sequence[str], top_n: int | None = None, **options: object
    ) -> list[Rank]:
        """Return the documents' scores for the query, the best first."""
        return await self._send(_calls.rerank(model, query, documents, top_n, options))

    async def predict(self, model: str, inputs: Inputs, **options: object) -> list[Any]:
        """Return the answers of a model of any task, as JSON has them."""
        return await self._send(_calls.predict(model, inputs, options))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _send(self, call: Call[T]) -> T:
        async for attempt in stamina.retry_context(**self._tries):
            with attempt:
                try:
                    response = await self._http.post(call.path, **call.arguments)
                except httpx.HTTPError as error:
                    raise unanswered(error) from error
                return call.answer(response)
        raise AssertionError("the last attempt returns or raises")
