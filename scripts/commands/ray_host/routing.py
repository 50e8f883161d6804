"""How a front finds a replica for a call: Ray's router, with the order of ranking.py.

Source: docs.ray.io, Serve, "Use custom algorithm for request routing".
"""

from __future__ import annotations

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

from ray_host.ranking import Ranking


class LeastBusyRouter(FIFOMixin, LocalityMixin, MultiplexMixin, RequestRouter):  # type: ignore[misc]
    """Spreads the calls of a front evenly. Of equals, Ray takes the one whose queue was shortest when last asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ranking: Ranking[ReplicaID] = Ranking()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return groups of candidates, the best first: for a multiplexed model those that hold it, else near ones."""
        wanted = pending_request is not None and pending_request.metadata.multiplexed_model_id
        prefer = self.apply_multiplex_routing if wanted else self.apply_locality_routing
        ids = [name for name in prefer(pending_request=pending_request) if name in self._replicas]
        known = {name for name in ids if self.replica_queue_len_cache.get(name) is not None}
        return [[self._replicas[name] for name in group] for group in self._ranking.groups(ids, known)]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count a call that is sent."""
        self._ranking.sent(replica_id)
        super().on_send_request(replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Forget a call that is answered, refused by the replica, or lost with it."""
        super().on_request_completed(replica_id, internal_request_id)
        self._ranking.ended(replica_id)
