"""The application: a deployment per model, and the front before them. `serve deploy` calls `build`.

Each model is a deployment of its own, and not multiplexed into shared replicas: each then has its own share of a GPU,
its own batches, queue and autoscaling, and one model's crash or update leaves the others alone. Multiplexing suits
many models that are rarely asked; here loading takes seconds, as an engine is compared and timed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from handlers.hosts.contents import ArchiveError
from ray_host import archives
from ray_host.archives import Head
from ray_host.front import Front, Served
from ray_host.options import AppOptions, ModelOptions
from ray_host.replica import Replica

FRONT = "front"
# A replica holds a batch that runs, one that waits for it, and one on the way. Small batches end sooner than that
# helps, so it holds LEAST_HELD requests at least.
BATCHES_HELD = 3
LEAST_HELD = 64
# If all replicas hold that many, Ray's router looks again after a while: 25 ms, then up to 500, while replicas idle.
LOOK_AGAIN_S, LONGEST_S = 0.002, 0.016
FRONT_HOLDS = 10_000  # requests; models have bounds of their own
HEALTH = {"health_check_period_s": 5, "health_check_timeout_s": 30}
DRAIN_S = 60  # that a replica gets for its last answers


def build(args: Mapping[str, Any]) -> Any:
    """Return the application for the `args` of a deployment file; see AppOptions.

    Raises ValueError for wrong args, ArchiveError for an archive that is not there or not the one of the digest.
    """
    options = AppOptions.of(args)
    found: dict[str, list[Served]] = {}
    for model in options.models:
        told = _head(model)
        name = model.name or told.name
        versions = found.setdefault(name, [])
        if any(told.version == other.version for other in versions):
            raise ValueError(f"the model {name} of version {told.version} is named twice")
        device = "cuda" if gpus(model) else "cpu"
        own_name = f"{name}-{told.version}" if versions else name  # an update finds a model by it
        deployment = serve.deployment(Replica).options(**deployment_options(model, told, own_name))
        bound = deployment.bind(model, told.digest, device)
        versions.append(Served(told.version, bound, model.timeout_s, **gathering(model, told, options.fronts)))
    front = serve.deployment(Front).options(
        name=FRONT,
        num_replicas=options.fronts,
        max_ongoing_requests=FRONT_HOLDS,
        ray_actor_options={"num_cpus": options.front_num_cpus},
        graceful_shutdown_timeout_s=DRAIN_S,
        **HEALTH,
    )
    return front.bind(found)


def deployment_options(model: ModelOptions, told: Head, name: str) -> dict[str, Any]:
    """Return how Ray Serve runs the replicas of a model. name: of the deployment."""
    batch_size = model.batch_size or told.batch_size
    is_gathered = gathering(model, told, 1)["per_call"] > 1
    return {
        "name": name,
        **_replicas(model, batch_size),
        "max_ongoing_requests": max(LEAST_HELD, BATCHES_HELD * batch_size),
        "max_queued_requests": -1 if is_gathered else model.max_queued,  # the front counts requests, and Ray calls
        "request_router_config": RequestRouterConfig(initial_backoff_s=LOOK_AGAIN_S, max_backoff_s=LONGEST_S),
        "graceful_shutdown_timeout_s": DRAIN_S,
        "ray_actor_options": {
            "num_cpus": model.num_cpus,
            "num_gpus": gpus(model),
            "resources": dict(model.resources),
        },
        **HEALTH,
    }


def gathering(model: ModelOptions, told: Head, fronts: int) -> dict[str, int]:
    """Return how a front sends a model's requests, by Served's names: a batch in each call.

    A model that scales by its load gets a call per request: Ray counts calls, and starts replicas by their number.
    """
    if model.is_scaled:
        return {"per_call": 1}
    calls = max(2, math.ceil(BATCHES_HELD * model.replicas / fronts))
    return {"per_call": model.batch_size or told.batch_size, "calls": calls, "max_queued": model.max_queued}


def gpus(model: ModelOptions) -> float:
    """Return the share of a GPU for each replica."""
    if model.num_gpus is not None:
        return model.num_gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def _replicas(model: ModelOptions, batch_size: int) -> dict[str, Any]:
    """A fixed number, or autoscaling: another replica is started if more than a batch waits in each."""
    if not model.is_scaled:
        return {"num_replicas": model.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": model.replicas,
            "max_replicas": model.max_replicas,
            "target_ongoing_requests": max(2, batch_size),
            **model.autoscaling,
        }
    }


def _head(model: ModelOptions) -> Head:
    """What the archive says of itself. Raises ArchiveError, also if it is another one than the digest says."""
    told = archives.head(archives.local(model.archive, model.digest))
    if model.digest not in (None, told.digest):
        raise ArchiveError(f"an archive has the digest {told.digest}, and {model.digest} is wanted")
    return told
