"""The inputs of a batch on their way to the network, each with the request that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Generic, TypeVar

from handlers.protocol import deadlines
from handlers.protocol.errors import RequestError
from handlers.protocol.request import Request

T = TypeVar("T")
R = TypeVar("R")
Options = Mapping[str, Any]
Span = tuple[Request, int, int]  # a request, the index of its first input, and that behind its last


class Inputs(Generic[T]):
    """One value per input, those of a request one behind the other, in the order of the batch.

    Each step returns new ones. An input that fails gives its whole request the error; the request's other inputs
    are left out of what follows, and no other request notices.

    Args:
        values: one per input.
        requests: each input's request.
        spans: each request once, with the indices of its inputs, if they are known already.
    """

    def __init__(self, values: Sequence[T], requests: Sequence[Request], spans: Sequence[Span] | None = None) -> None:
        _refuse_other_count(values, requests)
        self.values, self.requests = values, requests
        self._spans = _spans_of(requests) if spans is None else spans

    def __len__(self) -> int:
        return len(self.values)

    def each(self, work: Callable[[T, Options], R]) -> Inputs[R]:
        """Return `work(value, its request's options)` per input. A RequestError that it raises is the input's."""

        def attempt(value: T, request: Request) -> R | RequestError:
            try:
                return work(value, request.options)
            except RequestError as error:
                return error

        return self._become(list(map(attempt, self.values, self.requests)))

    def together(self, work: Callable[[Sequence[T]], Sequence[R | RequestError]]) -> Inputs[R]:
        """Return what `work` makes of all values in one call: one result per value, or its error."""
        return self._become(work(self.values) if self.values else [])

    def checked(self, refuse: Callable[[Sequence[T], Options], None]) -> Inputs[T]:
        """Return the inputs of those requests for which refuse(values, options) raises no RequestError."""
        for request, start, end in self._spans:
            try:
                refuse(self.values[start:end], request.options)
            except RequestError as error:
                request.error = error
        return self._become(self.values)

    def in_time(self) -> Inputs[T]:
        """Return the inputs of those requests whose deadline has not passed."""
        for request, _, _ in self._spans:
            request.error = request.error or deadlines.refusal(request.deadline)
        return self._become(self.values)

    def flattened(self: Inputs[list[R]]) -> Inputs[R]:
        """Return the items of each value as inputs of their own."""
        pairs = [
            (item, request) for values, request in zip(self.values, self.requests, strict=True) for item in values
        ]
        return Inputs([item for item, _ in pairs], [request for _, request in pairs])

    def sized(self, size: Callable[[T], int]) -> Inputs[T]:
        """Return the inputs themselves; each request now knows how large its own are (Request.sizes)."""
        sizes = list(map(size, self.values))
        for request, start, end in self._spans:
            request.sizes = sizes[start:end]
        return self

    def with_options(self) -> list[tuple[T, Options]]:
        """Return each value with its request's options."""
        return [(value, request.options) for value, request in zip(self.values, self.requests, strict=True)]

    def owners(self) -> list[int]:
        """Return the index of each input's request among the requests that have inputs here; ascending."""
        return [index for index, (_, start, end) in enumerate(self._spans) for _ in range(start, end)]

    def hand_back(self, answers: Sequence[object]) -> None:
        """Give each request its inputs' answers; one that is a RequestError becomes its request's error."""
        _refuse_other_count(answers, self.requests)
        for request, start, end in self._spans:
            request.answers = answers[start:end]
            request.error = _first_error(request.answers, request)

    def check_answers(self, refuse: Callable[[Sequence[object]], None]) -> None:
        """Give a request the RequestError that refuse(its answers) raises."""
        for request, _, _ in self._spans:
            try:
                refuse(request.answers)
            except RequestError as error:
                request.error = request.error or error

    def _become(self, results: Sequence[R | RequestError]) -> Inputs[R]:
        """These results in place of the values; those of requests with an error are left out."""
        if not any(isinstance(result, RequestError) for result in results):
            good: Any = results
            if all(request.error is None for request, _, _ in self._spans):
                return Inputs(good, self.requests, self._spans)
        for request, start, end in self._spans:
            request.error = request.error or _first_error(results[start:end], request)
        kept = [
            (result, request)
            for result, request in zip(results, self.requests, strict=True)
            if request.error is None and not isinstance(result, RequestError)
        ]
        return Inputs([result for result, _ in kept], [request for _, request in kept])


def inputs_of(requests: Sequence[Request]) -> Inputs[object]:
    """Return the inputs of all requests that want the model, as they were read."""
    waiting = [request for request in requests if request.is_waiting]
    return Inputs(
        [value for request in waiting for value in request.inputs],
        [request for request in waiting for _ in request.inputs],
    )


def joined(parts: Sequence[Inputs[T]]) -> Inputs[T]:
    """Return the inputs of several batches as one."""
    return Inputs(
        [value for part in parts for value in part.values], [request for part in parts for request in part.requests]
    )


def _first_error(results: Sequence[object], request: Request) -> RequestError | None:
    """Return the first error among a request's results; if there are several results, it says which."""
    for number, result in enumerate(results, 1):
        if isinstance(result, RequestError):
            if len(results) == 1:
                return result
            return type(result)(f"{request.place(number, len(results))}: {result.message}")
    return None


def _refuse_other_count(values: Sequence[object], requests: Sequence[Request]) -> None:
    if len(values) != len(requests):
        raise ValueError(f"{len(values)} results came for {len(requests)} inputs")


def _spans_of(requests: Sequence[Request]) -> list[Span]:
    starts = [index for index, request in enumerate(requests) if not index or request is not requests[index - 1]]
    return [(requests[start], start, end) for start, end in pairwise([*starts, len(requests)])]
