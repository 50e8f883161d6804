"""Which replica a front sends a call to: one that has the fewest of this front's calls.

Ray's own router takes the better of two replicas at random. A front has few calls on their way, as each holds a
batch. So two at random leave some replicas idle while others have several batches waiting. On two H200 with 12
replicas that gave 1.84 to 1.86 times the texts/s of one H200 (docs/benchmarks.md). scripts/research/ray_routing.py
simulates both ways. To look at the queue lengths of all replicas alone would be worse: a front learns a replica's
length only when it sends it something, and would avoid one that was busy then.

Source: docs.ray.io, Serve, "Use custom algorithm for request routing".
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import (
    FIFOMixin,
    LocalityMixin,
    MultiplexMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)


class LeastBusyRouter(FIFOMixin, LocalityMixin, MultiplexMixin, RequestRouter):  # type: ignore[misc]
    """Spreads the calls of a front evenly. Of equals, Ray takes the one whose queue was shortest when last asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_way: Counter[ReplicaID] = Counter()  # calls of this front, by replica

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return groups of candidates, the best first: for a multiplexed model those that hold it, else near ones."""
        wanted = pending_request is not None and pending_request.metadata.multiplexed_model_id
        prefer = self.apply_multiplex_routing if wanted else self.apply_locality_routing
        ids = [name for name in prefer(pending_request=pending_request) if name in self._replicas]
        return [[self._replicas[name] for name in group] for group in by_calls(ids, self._on_way)]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count a call that is sent."""
        self._on_way[replica_id] += 1
        super().on_send_request(replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Forget a call that is answered, refused by the replica, or lost with it."""
        super().on_request_completed(replica_id, internal_request_id)
        self._on_way[replica_id] -= 1
        if self._on_way[replica_id] <= 0:
            del self._on_way[replica_id]


def by_calls(ids: Sequence[ReplicaID], on_way: Counter[ReplicaID]) -> list[list[ReplicaID]]:
    """Return replicas in two groups, each in random order: those with the fewest calls on the way, and the others."""
    shuffled = random.sample(ids, len(ids))
    least = min((on_way[name] for name in ids), default=0)
    first = [name for name in shuffled if on_way[name] == least]
    rest = [name for name in shuffled if on_way[name] != least]
    return [group for group in (first, rest) if group]
