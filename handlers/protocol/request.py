"""One client's request on its way through a handler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from handlers.protocol import encodings
from handlers.protocol.errors import RequestError
from handlers.protocol.request_ids import RequestIds

if TYPE_CHECKING:
    from handlers.protocol.adapter import Adapter

T = TypeVar("T")
R = TypeVar("R")
Combine = Callable[[Sequence[Any]], object]


class TokenIds(tuple[int, ...]):
    """An input that came as token ids of the model's tokenizer, instead of as a text."""

    __slots__ = ()


def one_answer(answers: Sequence[Any]) -> object:
    """Combine the answer to one input: itself. A file of several images has several, which stay a list."""
    return answers[0] if len(answers) == 1 else answers


def place_of(number: int, count: int) -> str:
    """Return how an error names the input at fault."""
    return f"input {number} of {count}"


@dataclass
class Request:
    """One client's request, read by the adapter of its protocol, which also writes its answer.

    Args:
        adapter: of the protocol that the request came by.
        inputs: one entry per input of the model: bytes, a str, TokenIds, or a value from JSON. Empty for a request
            that the adapter answers without the model.
        options: by name, validated. They hold for all inputs.
        combine: makes of the inputs' answers, in the order of `inputs`, what the client gets.
        media_type: in which the answer comes.
        answers: by the model, one per input.
        sizes: tokens of each input as they run, cut ones after the cut; empty for images.
        error: why the request has none.
        arrived: when a proxy or the host took the request, in time.time()'s seconds; None if nothing said so.
        deadline: until when the answer is wanted, in time.time()'s seconds; None for no limit.
        is_grpc, is_unanswerable: as the Row says.
        ids: by which the client and the log name it.
        place: names an input in errors, by its number from 1 and the count of inputs.
    """

    adapter: Adapter
    inputs: Sequence[object] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    combine: Combine = one_answer
    media_type: str = encodings.JSON
    answers: Sequence[Any] = ()
    sizes: Sequence[int] = ()
    error: RequestError | None = None
    arrived: float | None = None
    deadline: float | None = None
    is_grpc: bool = False
    is_unanswerable: bool = False
    ids: RequestIds = field(default_factory=RequestIds)
    place: Callable[[int, int], str] = place_of

    @property
    def usage(self) -> dict[str, int]:
        """The tokens that ran, as OpenAI's and Jina's answers tell them."""
        tokens = sum(self.sizes)
        return {"prompt_tokens": tokens, "total_tokens": tokens}

    @property
    def is_waiting(self) -> bool:
        """Whether the request still wants answers of the model."""
        return self.error is None and len(self.inputs) > 0 and not self.answers


def caught(work: Callable[[T], R]) -> Callable[[T], R | RequestError]:
    """Return `work` with a RequestError returned instead of raised."""

    def attempt(item: T) -> R | RequestError:
        try:
            return work(item)
        except RequestError as error:
            return error

    return attempt
