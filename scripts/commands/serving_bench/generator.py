"""What load generators share: the endpoint to ask, the load to send, and the result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from server.http import without_ids

MOST_WORDS = 300  # characters of an error's message that are kept


class GeneratorError(RuntimeError):
    """A load generator could not run."""


@dataclass(frozen=True)
class Endpoint:
    """Where requests go.

    headers: what the server needs, such as its token. others: further servers of the same model; connections are
    spread evenly over all.
    """

    url: str
    headers: Mapping[str, str]
    others: tuple[Endpoint, ...] = ()

    @property
    def each(self) -> tuple[Endpoint, ...]:
        """All servers, this one first."""
        return (self, *self.others)


def together(endpoints: Sequence[Endpoint]) -> Endpoint:
    """One endpoint that stands for all of them."""
    first, *others = endpoints
    return replace(first, others=tuple(others))


@dataclass(frozen=True)
class Load:
    """Requests to send, one body after another.

    name: for reports. headers: content type, and what else the handler reads. unit: what one item is called, such as
    "images". items: how many are in one request.
    """

    name: str
    bodies: Sequence[bytes]
    headers: Mapping[str, str]
    unit: str = "requests"
    items: int = 1

    @property
    def mean_bytes(self) -> int:
        """Mean size of a body."""
        return round(sum(map(len, self.bodies)) / len(self.bodies))


@dataclass(frozen=True)
class LoadResult:
    """What a generator saw during one load.

    statuses: answers by HTTP status. failures: requests without an answer, by kind. latency_ms: p50, p90, p99, p999
    and max of all answers. cpu_seconds: of the generator. late_ms: how much later than planned an open loop sent.
    threads: threads or processes that made the load; 0 if unknown. messages: the first words of an error, by status.
    """

    generator: str
    seconds: float
    statuses: Mapping[str, int]
    failures: Mapping[str, int]
    latency_ms: Mapping[str, float]
    cpu_seconds: float
    late_ms: Mapping[str, float] = field(default_factory=dict)
    threads: int = 0
    messages: Mapping[str, str] = field(default_factory=dict)

    @property
    def answered(self) -> int:
        """Answers with a status of 2xx."""
        return sum(count for status, count in self.statuses.items() if status.startswith("2"))

    @property
    def errors(self) -> int:
        """Requests that were not answered with 2xx."""
        return sum(self.statuses.values()) - self.answered + sum(self.failures.values())

    @property
    def requests_per_s(self) -> float:
        """Requests that were answered with 2xx, per second."""
        return self.answered / self.seconds if self.seconds else 0.0


def message_of(body: bytes) -> str:
    """The message of an error's body, in one line. It is the body itself if that is not TorchServe's JSON."""
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    found = content.get("message") if isinstance(content, dict) else None
    words = found if isinstance(found, str) else without_ids(body).decode(errors="replace")
    return " ".join(words.split())[:MOST_WORDS]


class Generator(Protocol):
    """A closed loop: each client sends its next request as soon as its last is answered."""

    @property
    def name(self) -> str: ...

    def closed(self, endpoint: Endpoint, load: Load, clients: int, seconds: float) -> LoadResult:
        """Keep `clients` requests open for `seconds`. Raises GeneratorError."""
        ...
