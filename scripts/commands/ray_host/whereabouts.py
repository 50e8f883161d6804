"""Where a model is loaded, of those that share replicas: every replica is asked, and loads nothing for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_host.gone import ReplicaGoneError


async def of(handle: Any, key: str) -> dict[str, Any]:
    """Return how a model runs and why, if it is loaded; whether it is; and its state in each replica.

    Args:
        handle: of the replicas.
        key: of the model.

    Raises ReplicaGoneError if no replica answers, and as Ray Serve.
    """
    told = await handle.broadcast("describe_here", key).results_async(return_exceptions=True)
    return merged([each for each in told if not isinstance(each, BaseException)])


def merged(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one description of what replicas say. Raises ReplicaGoneError for none."""
    if not told:
        raise ReplicaGoneError("no replica says where the model is")
    loaded = [each for each in told if each["replica"]["state"] == "loaded"]
    chosen = (loaded or told)[0]
    replicas = sorted((each["replica"] for each in told), key=lambda each: str(each["replica"]))
    return {**chosen["model"], "isLoaded": bool(loaded), "replicas": replicas}
