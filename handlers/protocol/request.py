"""One request on its way through a handler, and the values of all requests of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from handlers.protocol import encodings
from handlers.protocol.errors import RequestError

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Request:
    """One row on its way through the handler.

    payloads: what the client sent, one entry an input: bytes, or a value from JSON.
    shape: "one" answers the input itself, "list" a list in the same order, "instances" the KServe v1 form
        `{"predictions": [...]}` for `{"instances": [...]}`.
    options: query or JSON parameters by name, validated.
    inputs: the decoded inputs, results: their answers; same length and order as payloads.
    form: the media type of the answer, one of answers.MEDIA_TYPES.
    grpc, unanswerable: as `rows.Front` has them.
    """

    payloads: list[Any] = field(default_factory=list)
    shape: str = "one"
    options: dict[str, Any] = field(default_factory=dict)
    inputs: list[Any] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    error: RequestError | None = None
    description: dict[str, Any] | None = None
    form: str = encodings.JSON
    grpc: bool = False
    unanswerable: bool = False

    @property
    def open(self) -> bool:
        """Whether this request still wants the model."""
        return self.error is None and self.description is None

    def check(self, refuse: Callable[..., object], *arguments: object) -> None:
        """Keep the RequestError that refuse(*arguments) may raise as this request's own."""
        try:
            refuse(*arguments)
        except RequestError as error:
            self.error = error

    def answer(self) -> object:
        if self.error is not None:
            return self.error.body()
        if self.description is not None:
            return self.description
        if self.shape == "instances":
            return {"predictions": self.results}
        return self.results[0] if self.shape == "one" else self.results


def gather(requests: Iterable[Request], stage: str) -> list[Any]:
    """What all open requests hold in `stage` ("payloads" or "inputs"), in order."""
    return [item for request in requests if request.open for item in getattr(request, stage)]


def gather_options(requests: Iterable[Request], stage: str) -> list[Mapping[str, Any]]:
    """For each item of `gather(requests, stage)`, its request's options."""
    return [request.options for request in requests if request.open for _ in getattr(request, stage)]


def gather_owners(requests: Iterable[Request], stage: str) -> list[int]:
    """For each item of `gather(requests, stage)`, its request's index."""
    return [place for place, request in enumerate(requests) if request.open for _ in getattr(request, stage)]


def scatter(requests: Iterable[Request], values: Iterable[object], source: str, target: str) -> None:
    """Hand one value for each item of `gather(requests, source)` back to its request's `target`.

    A value that is a RequestError becomes the error of its whole request, and of no other.
    """
    remaining = iter(values)
    for request in requests:
        if not request.open:
            continue
        count = len(getattr(request, source))
        mine = [next(remaining) for _ in range(count)]
        errors = [(place, value) for place, value in enumerate(mine, 1) if isinstance(value, RequestError)]
        if errors:
            place, request.error = errors[0]
            if count > 1:
                request.error = type(request.error)(f"input {place} of {count}: {request.error.message}")
        setattr(request, target, mine)


def caught(work: Callable[[T], R]) -> Callable[[T], R | RequestError]:
    """`work`, with a RequestError returned instead of raised."""

    def attempt(item: T) -> R | RequestError:
        try:
            return work(item)
        except RequestError as error:
            return error

    return attempt
